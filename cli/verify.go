package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/verify"
	"github.com/spf13/cobra"
)

// kindNames are the kinds of walls.
var kindNames = []string{string(api.KindContainer), string(api.KindPVM), string(api.KindVM)}

func (a *app) verifyCmd() *cobra.Command {
	var kinds []string
	var quick bool
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Measure what the walls of this host hold, cost and change",
		Long: `For every kind of wall that this host has, a program runs inside and outside of a guest. Equivalence: the answers that differ. Efficiency: work per second inside as a ratio to outside. Control: what a guest got that tried to take more than it was given, or to reach what isn't its own.

It starts guests of the image base and deletes them again. It must run on the daemon's own host, and takes a minute or two for each kind. The exit status is 1 if a guest was not held.`,
		Example: `  cleave verify
  cleave verify --kind container,vm -o json`,
		Args: args(0, 0, ""),
	}
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only these `KINDS`: "+strings.Join(kindNames, ", "))
	cmd.Flags().BoolVar(&quick, "quick", false, "measure work for a fifth of a second: less exact, and done in half the time")
	f := showFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		path, err := probePath()
		if err != nil {
			return err
		}
		o := verify.Options{Client: c, Probe: path, Quick: quick, Progress: func(step string) { a.note("%s", step) }}
		for _, k := range kinds {
			if !slices.Contains(kindNames, k) {
				return usagef("--kind %s: choose of %s", k, strings.Join(kindNames, ", "))
			}
			o.Kinds = append(o.Kinds, api.Kind(k))
		}
		r, err := verify.Run(cmd.Context(), o)
		if err != nil {
			return err
		}
		if output.Format(f.name) != output.Table {
			err = printOne(a, f, r, nil)
		} else {
			_, err = a.out.W.Write([]byte(a.verifyText(r)))
		}
		if err == nil && r.Violated() {
			return statusError(exitFailed)
		}
		return err
	}
	return cmd
}

// probePath finds cleave-probe beside this program, or where it is installed.
func probePath() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if exe, err = filepath.EvalSymlinks(exe); err != nil {
		return "", err
	}
	dir := filepath.Dir(exe)
	for _, p := range []string{filepath.Join(dir, "cleave-probe"), filepath.Join(dir, "../libexec/cleave/cleave-probe")} {
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	return "", api.Errorf(api.CodeNotFound, "cleave-probe, which verify runs inside and outside of guests, is not beside %s", exe).
		WithHint("`make build` makes it, `make install` installs it")
}

// verifyText is the report for people, a section for each kind.
func (a *app) verifyText(r *verify.Report) string {
	var b strings.Builder
	for i, k := range r.Results {
		if i > 0 {
			b.WriteByte('\n')
		}
		title := string(k.Kind)
		if k.Engine != "" {
			title += ", engine " + k.Engine
		}
		if k.Accel != "" {
			title += " (" + k.Accel + ")"
		}
		b.WriteString(a.out.Paint(output.Clean(title), output.Strong) + "\n")
		if k.Asked > 0 {
			fmt.Fprintf(&b, "  equivalence  %d of %d answers are those of the host\n", k.Asked-len(k.Differences), k.Asked)
		}
		for _, d := range k.Differences {
			fmt.Fprintf(&b, "    %s: %s: %s outside, %s inside\n", d.Area, d.Name, output.Clean(d.Outside), output.Clean(d.Inside))
		}
		if len(k.Efficiency) > 0 {
			fmt.Fprintf(&b, "  efficiency   %-13s %12s %12s %7s\n", "per second", "outside", "inside", "ratio")
		}
		for _, e := range k.Efficiency {
			fmt.Fprintf(&b, "    %-12s %-10s %12s %12s %7.2f\n", e.Name, e.Unit, figure(e.Outside), figure(e.Inside), e.Ratio)
		}
		if len(k.Control) > 0 {
			b.WriteString("  control\n")
		}
		for _, c := range k.Control {
			if c.Refused != "" {
				fmt.Fprintf(&b, "    %s  %-26s %s\n", a.out.Paint("none", output.Busy), c.Name, output.Clean(c.Refused))
				continue
			}
			word, style := "held", output.Good
			if !c.Held {
				word, style = "NOT HELD", output.Bad
			}
			got := "got " + figure(c.Got) + " of " + figure(c.Limit)
			if c.Limit == 0 {
				got = "reached " + figure(c.Got)
			}
			fmt.Fprintf(&b, "    %s  %-26s %s %s", a.out.Paint(word, style), c.Name, got, c.Unit)
			if c.Note != "" && c.Note != "nothing" {
				b.WriteString(", then " + output.Clean(c.Note))
			}
			b.WriteByte('\n')
		}
		if k.Error != nil {
			fmt.Fprintf(&b, "  %s %s\n", a.out.Paint("not verified:", output.Busy), output.Clean(k.Error.Error()))
			if k.Error.Hint != "" {
				fmt.Fprintf(&b, "    → %s\n", output.Clean(k.Error.Hint))
			}
		}
	}
	return b.String()
}

// figure prints a number with three digits that matter.
func figure(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f < 10:
		return fmt.Sprintf("%.2f", f)
	case f < 100:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.0f", f)
}
