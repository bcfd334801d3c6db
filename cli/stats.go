package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

type statsColumn = output.Column[api.Stats]

func statsListing() output.Listing[api.Stats] {
	amount := func(head string, of func(api.Stats) uint64, extra bool) statsColumn {
		return statsColumn{
			Head: head, Right: true, Extra: extra,
			Cell: func(s api.Stats) string { return api.Bytes(of(s)).String() },
			Raw:  func(s api.Stats) string { return fmt.Sprint(of(s)) },
		}
	}
	count := func(head string, of func(api.Stats) uint64) statsColumn {
		return statsColumn{Head: head, Right: true, Extra: true, Cell: func(s api.Stats) string { return fmt.Sprint(of(s)) }}
	}
	return output.Listing[api.Stats]{
		Name: func(s api.Stats) string { return s.Name },
		Columns: []statsColumn{
			{Head: "NAME", Flex: true, Cell: func(s api.Stats) string { return s.Name }},
			{Head: "CPU TIME", Right: true, Cell: func(s api.Stats) string { return cpuTime(s.CPUNanos) }, Raw: func(s api.Stats) string { return fmt.Sprint(s.CPUNanos) }},
			amount("MEMORY", func(s api.Stats) uint64 { return uint64(s.Memory) }, false),
			{Head: "LIMIT", Right: true, Cell: func(s api.Stats) string { return sizeText(s.MemoryLimit) }, Raw: func(s api.Stats) string { return fmt.Sprint(int64(s.MemoryLimit)) }},
			{Head: "PIDS", Right: true, Cell: func(s api.Stats) string { return fmt.Sprint(s.PIDs) }},
			amount("DISK", func(s api.Stats) uint64 { return uint64(s.Disk) }, false),
			amount("READ", func(s api.Stats) uint64 { return s.ReadBytes }, false),
			amount("WRITTEN", func(s api.Stats) uint64 { return s.WriteBytes }, false),
			amount("NET IN", func(s api.Stats) uint64 { return s.RxBytes }, false),
			amount("NET OUT", func(s api.Stats) uint64 { return s.TxBytes }, false),
			amount("CACHE", func(s api.Stats) uint64 { return uint64(s.MemoryCache) }, true),
			amount("SWAP", func(s api.Stats) uint64 { return uint64(s.Swap) }, true),
			amount("DISK LIMIT", func(s api.Stats) uint64 { return uint64(s.DiskLimit) }, true),
			{Head: "THROTTLED", Right: true, Extra: true, Cell: func(s api.Stats) string { return cpuTime(s.ThrottledNanos) }, Raw: func(s api.Stats) string { return fmt.Sprint(s.ThrottledNanos) }},
			count("OOM KILLS", func(s api.Stats) uint64 { return s.OOMKills }),
			count("READS", func(s api.Stats) uint64 { return s.ReadOps }),
			count("WRITES", func(s api.Stats) uint64 { return s.WriteOps }),
			count("PACKETS IN", func(s api.Stats) uint64 { return s.RxPackets }),
			count("PACKETS OUT", func(s api.Stats) uint64 { return s.TxPackets }),
			count("DROPPED", func(s api.Stats) uint64 { return s.Dropped }),
			stall("CPU STALL", "cpu"), stall("MEMORY STALL", "memory"), stall("IO STALL", "io"),
		},
	}
}

// stall is the share of the last ten seconds in which something waited.
func stall(head, what string) statsColumn {
	return statsColumn{Head: head, Right: true, Extra: true, Cell: func(s api.Stats) string {
		p, ok := s.Pressure[what]
		if !ok {
			return ""
		}
		return fmt.Sprintf("%.1f%%", p.Some10)
	}}
}

// cpuTime prints CPU time as a clock would.
func cpuTime(nanos uint64) string {
	d := time.Duration(min(nanos, uint64(1<<62)))
	if d < time.Minute {
		return fmt.Sprintf("%.2fs", d.Seconds())
	}
	return d.Truncate(time.Second).String()
}

func (a *app) statsCmd() *cobra.Command {
	var watch bool
	listing := statsListing()
	cmd := &cobra.Command{
		Use:   "stats [NAME...]",
		Short: "Print what running instances have used",
		Long:  `The figures are totals since the start of each instance. --watch (or top) shows what they use now.`,
		Example: `  cleave stats
  cleave stats web -o json
  cleave stats --columns name,memory,cpu-stall,memory-stall,io-stall`,
		ValidArgsFunction: a.complete(-1, instanceNames(api.PhaseRunning, api.PhasePaused)),
	}
	f := listFormat(cmd, listing.ColumnNames())
	cmd.Flags().BoolVar(&watch, "watch", false, "show use per second and renew it, like top")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		selected, err := checkList(f, listing)
		if err != nil {
			return err
		}
		if watch {
			return a.top(cmd.Context(), names, topInterval)
		}
		all, err := a.sample(cmd.Context(), names)
		if err != nil {
			return err
		}
		return printList(a, f, selected, all)
	}
	return cmd
}

// sample reads the counters of the named instances, or of all that run.
func (a *app) sample(ctx context.Context, names []string) ([]api.Stats, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return c.AllStats(ctx)
	}
	return sampleEach(ctx, c, names)
}

func sampleEach(ctx context.Context, c *client.Client, names []string) ([]api.Stats, error) {
	var all []api.Stats
	for _, n := range names {
		s, err := c.Stats(ctx, n)
		if err != nil {
			return nil, err
		}
		all = append(all, *s)
	}
	return all, nil
}
