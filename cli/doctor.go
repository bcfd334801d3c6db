package cli

import (
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/spf13/cobra"
)

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host can do, why not, and what would change that",
		Long:  `The exit status is 0 whatever is found, as long as the daemon could look.`,
		Args:  args(0, 0, ""),
	}
	f := showFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		findings, err := c.Doctor(cmd.Context())
		if err != nil {
			return err
		}
		if output.Format(f.name) != output.Table {
			return printOne(a, f, findings, nil)
		}
		return a.printFindings(findings)
	}
	return cmd
}

var findingMarks = map[string]struct {
	mark  string
	style output.Style
}{
	"ok":      {"yes", output.Good},
	"limited": {"part", output.Busy},
	"missing": {"no", output.Bad},
}

// printFindings prints the findings by area: the answer, then what was
// found, and below it what would change it.
func (a *app) printFindings(findings []api.Finding) error {
	var b strings.Builder
	names := 0
	for _, f := range findings {
		names = max(names, output.Width(f.Name))
	}
	width := 80
	if a.out.Width > 0 {
		width = a.out.Width
	}
	indent := 2 + 4 + 2 + names + 2
	if indent > width/2 {
		indent = 8
	}
	area := ""
	for _, f := range findings {
		if f.Area != area {
			if area != "" {
				b.WriteByte('\n')
			}
			area = f.Area
			b.WriteString(a.out.Paint(output.Clean(area), output.Strong) + "\n")
		}
		m := findingMarks[f.State]
		if m.mark == "" {
			m.mark = f.State
		}
		b.WriteString("  " + a.out.Paint(m.mark, m.style) + strings.Repeat(" ", max(4-len(m.mark), 0)) + "  ")
		name := output.Clean(f.Name)
		b.WriteString(name)
		if f.Detail == "" {
			b.WriteByte('\n')
		} else {
			b.WriteString(strings.Repeat(" ", max(names-output.Width(name), 0)+2))
			writeIndented(&b, output.Clean(f.Detail), indent, width)
		}
		if f.Remedy != "" {
			b.WriteString(strings.Repeat(" ", indent))
			writeIndented(&b, "→ "+output.Clean(f.Remedy), indent, width)
		}
	}
	_, err := a.out.W.Write([]byte(b.String()))
	return err
}

func writeIndented(b *strings.Builder, text string, indent, width int) {
	for i, line := range output.Wrap(text, max(width-indent, 20)) {
		if i > 0 {
			b.WriteString(strings.Repeat(" ", indent))
		}
		b.WriteString(line + "\n")
	}
}
