package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Promises of a host with many idle guests.
const (
	perGuestMost = 1.5 * mib
	daemonMost   = 120e6
	idleMost     = 1.0 // percent of one CPU
	listRatio    = 10
	listAbout    = 40 * time.Millisecond
	tailMost     = 3 // launch p99 against p50
)

// idleFor is how long the idle host is watched.
const idleFor = 10 * time.Second

// window is how many launches are printed as one line.
const window = 100

// density runs many idle guests at once and looks at what that takes.
func (b *bench) density(ctx context.Context) error {
	before, err := meminfo()
	if err != nil {
		return err
	}
	if err := b.fill(ctx); err != nil {
		return err
	}
	if err := b.weigh(ctx, before); err != nil {
		return err
	}
	if err := b.idle(ctx); err != nil {
		return err
	}
	if err := b.listMany(ctx); err != nil {
		return err
	}
	if err := b.restart(ctx); err != nil {
		return err
	}
	return b.empty(ctx)
}

// fill launches the guests one after the other, every tenth by the command
// line tool, the others by the API.
func (b *bench) fill(ctx context.Context) error {
	fmt.Printf("\nLaunch of %d guests that stay, one after the other\n", b.guests)
	var byAPI, byCLI, part samples
	for i := range b.guests {
		if i%10 == 9 {
			if err := byCLI.run(ctx, b.host.cli("launch", "base", guest(i))); err != nil {
				return err
			}
		} else {
			begin := time.Now()
			in := &api.Instance{Meta: api.Meta{Name: guest(i)}, Spec: api.InstanceSpec{Image: "base"}}
			op, err := b.host.client.CreateInstance(ctx, in, true)
			if err := b.host.wait(ctx, op, err); err != nil {
				return fmt.Errorf("guest %d: %w", i, err)
			}
			byAPI, part = append(byAPI, time.Since(begin)), append(part, time.Since(begin))
		}
		if (i+1)%window == 0 || i+1 == b.guests {
			fmt.Printf("  to %4d: p50 %s, p99 %s, daemon %.0f MB resident\n", i+1,
				ms(part.p50()), ms(part.quantile(0.99)), float64(rss(b.host.cmd.Process.Pid))/1e6)
			part = nil
		}
	}
	tail := float64(byAPI.quantile(0.99)) / float64(byAPI.p50())
	facts(os.Stdout, "All launches",
		fact{what: "by the API", value: fmt.Sprintf("p50 %s, p90 %s, p99 %s", ms(byAPI.p50()), ms(byAPI.quantile(0.9)), ms(byAPI.quantile(0.99)))},
		fact{what: "by the command line", value: fmt.Sprintf("p50 %s, p90 %s, p99 %s", ms(byCLI.p50()), ms(byCLI.quantile(0.9)), ms(byCLI.quantile(0.99)))},
		fact{what: "p99 against p50", value: fmt.Sprintf("%.1fx", tail), target: fmt.Sprintf("<= %dx", tailMost), ok: tail <= tailMost},
	)
	return nil
}

// weigh finds what a guest takes beyond its own process, in two ways: by
// what the whole machine has less of, which another program's work disturbs,
// and by the sum of all that is known to belong to the guests.
func (b *bench) weigh(ctx context.Context, before map[string]int64) error {
	after, err := meminfo()
	if err != nil {
		return err
	}
	var own, agents int64
	for in, err := range b.host.client.Instances(ctx, filterAll) {
		if err != nil {
			return err
		}
		agents += pss(in.Status.PID)
		for _, c := range children(in.Status.PID) {
			own += pss(c)
		}
	}
	keepers, err := b.host.keepers()
	if err != nil {
		return err
	}
	n := float64(b.guests)
	per := func(bytes int64) string { return fmt.Sprintf("%.3f MiB", float64(bytes)/n/mib) }
	daemonRSS, keeperRSS := rss(b.host.cmd.Process.Pid), sumOf(keepers, rss)
	kernel := int64(0)
	for _, k := range []string{"SUnreclaim", "KernelStack", "PageTables", "Percpu"} {
		kernel += after[k] - before[k]
	}
	machine := before["MemAvailable"] - after["MemAvailable"] - own
	sum := agents + keeperRSS + kernel
	diff := func(key string) string { return per(after[key] - before[key]) }
	facts(os.Stdout, fmt.Sprintf("Memory with %d idle guests, for each guest", b.guests),
		fact{what: "less available memory, without the guest's own process", value: per(machine), target: "<= 1.5 MiB", ok: float64(machine)/n <= perGuestMost},
		fact{what: "sum of agent, kernel and keeper", value: per(sum), target: "<= 1.5 MiB", ok: float64(sum)/n <= perGuestMost},
		fact{what: "  the guest's agent (PSS)", value: per(agents)},
		fact{what: "  kernel: slab", value: diff("SUnreclaim") + ", and not counted " + diff("SReclaimable") + " that can be reclaimed"},
		fact{what: "  kernel: stacks, page tables, per-CPU data", value: diff("KernelStack") + ", " + diff("PageTables") + ", " + diff("Percpu")},
		fact{what: "  keeper", value: per(keeperRSS)},
		fact{what: "the guest's own process (PSS), not counted above", value: per(own)},
		fact{what: "daemon, all of it", value: fmt.Sprintf("%.0f MB resident", float64(daemonRSS)/1e6), target: fmt.Sprintf("<= %.0f MB", daemonMost/1e6), ok: daemonRSS <= daemonMost},
	)
	return nil
}

// idle watches how much CPU time it takes to do nothing.
func (b *bench) idle(ctx context.Context) error {
	ours, err := b.host.keepers()
	if err != nil {
		return err
	}
	ours = append(ours, b.host.cmd.Process.Pid)
	// What the launches left to do is not idling.
	if err := pause(ctx, 3*time.Second); err != nil {
		return err
	}
	var agents []int
	for in, err := range b.host.client.Instances(ctx, filterAll) {
		if err != nil {
			return err
		}
		agents = append(agents, in.Status.PID)
	}
	d, a, begin := sumOf(ours, ticks), sumOf(agents, ticks), time.Now()
	if err := pause(ctx, idleFor); err != nil {
		return err
	}
	percent := func(t int64) float64 { return float64(t) * 100 / hertz / time.Since(begin).Seconds() }
	used := percent(sumOf(ours, ticks) - d)
	facts(os.Stdout, fmt.Sprintf("CPU with %d idle guests, over %s", b.guests, idleFor),
		fact{what: "daemon and keeper", value: fmt.Sprintf("%.2f %% of a CPU", used), target: fmt.Sprintf("<= %.0f %%", idleMost), ok: used <= idleMost},
		fact{what: "all agents together", value: fmt.Sprintf("%.2f %% of a CPU", percent(sumOf(agents, ticks)-a))},
	)
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listMany times the listing of all guests, against LXD's of eleven.
func (b *bench) listMany(ctx context.Context) error {
	var theirs commands
	if b.lxd != nil {
		theirs = commands{lxd: b.lxd.launch}
		if err := (&row{}).turns(ctx, theirs, listed); err != nil {
			return err
		}
	}
	r := row{what: fmt.Sprintf("list of %d guests (LXD: %d)", b.guests, listed), ratio: listRatio, about: listAbout}
	if err := b.timeList(ctx, &r); err != nil {
		return err
	}
	table(os.Stdout, "List of many", r)
	if b.lxd == nil {
		return nil
	}
	theirs.lxd = b.lxd.delete
	return (&row{}).turns(ctx, theirs, listed)
}

// restart ends the daemon under its guests, in order and by SIGKILL.
func (b *bench) restart(ctx context.Context) error {
	var list []fact
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := b.host.stop(sig); err != nil {
			return err
		}
		serving, err := b.host.start()
		if err != nil {
			return err
		}
		begin, running := time.Now(), 0
		for in, err := range b.host.client.Instances(ctx, filterAll) {
			if err != nil {
				return err
			}
			if in.Status.Phase == api.PhaseRunning {
				running++
			}
		}
		list = append(list, fact{
			what:  fmt.Sprintf("until it serves, after %s", sigName(sig)),
			value: fmt.Sprintf("%s, then %s until %d running guests were listed", ms(serving), ms(time.Since(begin)), running),
			// Nothing else is a restart that nobody notices.
			target: "all of them", ok: running == b.guests,
		})
	}
	facts(os.Stdout, fmt.Sprintf("Start of the daemon while %d guests run", b.guests), list...)
	return nil
}

func sigName(s syscall.Signal) string {
	if s == syscall.SIGKILL {
		return "SIGKILL"
	}
	return "SIGTERM"
}

// empty deletes all guests: a tenth one after the other, the rest at once as
// a user's script would.
func (b *bench) empty(ctx context.Context) error {
	var one samples
	first := max(b.guests/10, 1)
	for i := range first {
		begin := time.Now()
		op, err := b.host.client.DeleteInstance(ctx, guest(i), true)
		if err := b.host.wait(ctx, op, err); err != nil {
			return err
		}
		one = append(one, time.Since(begin))
	}
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, b.guests)
	turns := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range turns {
				op, err := b.host.client.DeleteInstance(ctx, guest(i), true)
				if err := b.host.wait(ctx, op, err); err != nil {
					errs <- err
				}
			}
		})
	}
	for i := first; i < b.guests; i++ {
		turns <- i
	}
	close(turns)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	facts(os.Stdout, "Delete of all",
		fact{what: fmt.Sprintf("%d one after the other", first), value: fmt.Sprintf("p50 %s, p99 %s each", ms(one.p50()), ms(one.quantile(0.99)))},
		fact{what: fmt.Sprintf("%d by 8 clients", b.guests-first), value: ms(time.Since(begin))},
	)
	return nil
}
