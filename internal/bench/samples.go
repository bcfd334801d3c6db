package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// samples are durations of the same work done again and again.
type samples []time.Duration

// quantile is by nearest rank: the least sample that p of all don't exceed.
func (s samples) quantile(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, int(math.Ceil(p*float64(len(s))))-1)]
}

func (s samples) p50() time.Duration { return s.quantile(0.5) }

// run times a command as a whole process. What it wrote is in the error. That
// goes through a file: a guest of runc keeps a pipe open after its launch.
func (s *samples) run(ctx context.Context, c *exec.Cmd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	said, err := os.CreateTemp("", "bench")
	if err != nil {
		return err
	}
	defer said.Close()
	if err := os.Remove(said.Name()); err != nil {
		return err
	}
	c.Stderr = said
	begin := time.Now()
	err = c.Start()
	if err == nil {
		// Not CommandContext: a command cut short would leave half a guest.
		defer time.AfterFunc(commandMost, func() { _ = c.Process.Kill() }).Stop()
		err = c.Wait()
	}
	*s = append(*s, time.Since(begin))
	if err != nil {
		text, _ := io.ReadAll(io.NewSectionReader(said, 0, 1<<16))
		return fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, text)
	}
	return nil
}

// commandMost is when a command hangs.
const commandMost = time.Minute

// row is a line of the table: the same work by Cleave and its peers.
type row struct {
	what              string
	cleave, lxd, runc samples
	ratio             float64       // target: so many times faster than LXD
	about             time.Duration // target where LXD isn't there
}

// table prints rows under a title.
func table(w io.Writer, title string, rows ...row) {
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\tcleave p50\tp90\tp99\tLXD p50\tratio\trunc p50\tratio\ttarget\t\t")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", r.what,
			ms(r.cleave.p50()), ms(r.cleave.quantile(0.9)), ms(r.cleave.quantile(0.99)),
			against(r.cleave, r.lxd), against(r.cleave, r.runc), r.verdict())
	}
	_ = t.Flush()
}

// against is the cells of a peer: its median, and how often Cleave's fits in.
func against(ours, theirs samples) string {
	if len(theirs) == 0 {
		return "-\t-"
	}
	return fmt.Sprintf("%s\t%.1fx", ms(theirs.p50()), factor(ours, theirs))
}

func factor(ours, theirs samples) float64 { return float64(theirs.p50()) / float64(ours.p50()) }

func (r row) verdict() string {
	switch {
	case r.ratio == 0:
		return "\t"
	case len(r.lxd) == 0:
		return fmt.Sprintf("<= %s\t%s", ms(r.about), verdict(r.cleave.p50() <= r.about))
	}
	return fmt.Sprintf(">= %.0fx LXD\t%s", r.ratio, verdict(factor(r.cleave, r.lxd) >= r.ratio))
}

func verdict(ok bool) string {
	if ok {
		return "pass"
	}
	return "MISSED"
}

func ms(d time.Duration) string {
	f := float64(d) / float64(time.Millisecond)
	switch {
	case f < 10:
		return fmt.Sprintf("%.1f ms", f)
	case f < 10000:
		return fmt.Sprintf("%.0f ms", f)
	}
	return fmt.Sprintf("%.1f s", f/1000)
}

// facts prints measured values, each with its target if it has one.
type fact struct {
	what, value, target string
	ok                  bool
}

func facts(w io.Writer, title string, list ...fact) {
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range list {
		line := "  " + f.what + "\t" + f.value
		if f.target != "" {
			line += "\t" + f.target + "\t" + verdict(f.ok)
		}
		fmt.Fprintln(t, line)
	}
	_ = t.Flush()
}
