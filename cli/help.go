package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

type flag = pflag.Flag

// helpWidth is the widest that help gets.
const helpWidth = 100

// help prints a command's help: what it does, how it is written, and its
// flags by section.
func (a *app) help(cmd *cobra.Command, _ []string) {
	width := helpWidth
	if a.out.Width > 0 {
		width = min(width, a.out.Width)
	} else {
		width = 80
	}
	h := &helpWriter{width: width, p: a.out}
	h.write(cmd)
	fmt.Fprint(a.out.W, h.String())
}

type helpWriter struct {
	strings.Builder
	width int
	p     *output.Printer
}

func (h *helpWriter) write(cmd *cobra.Command) {
	h.paragraph(cmd.Short + ".")
	if cmd.Runnable() && !cmd.HasAvailableSubCommands() {
		h.head("Usage")
		fmt.Fprintf(h, "  %s\n", usageLine(cmd))
	} else {
		h.head("Usage")
		fmt.Fprintf(h, "  %s\n", strings.TrimSpace(cmd.CommandPath()+" COMMAND"))
	}
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(h, "\nAlso written: %s\n", strings.Join(cmd.Aliases, ", "))
	}
	if cmd.Long != "" {
		h.WriteString("\n")
		for i, para := range strings.Split(cmd.Long, "\n\n") {
			if i > 0 {
				h.WriteString("\n")
			}
			if strings.HasPrefix(para, "  ") {
				h.WriteString(strings.TrimRight(para, "\n") + "\n") // laid out by hand
				continue
			}
			h.paragraph(para)
		}
	}
	if cmd.Example != "" {
		h.head("Examples")
		h.WriteString(cmd.Example + "\n")
	}
	h.commands(cmd)
	h.flags(cmd)
	switch {
	case cmd.HasParent():
		fmt.Fprintf(h, "\nGlobal flags: see '%s --help'\n", cmd.Root().Name())
	default:
		fmt.Fprintf(h, "\n'%s COMMAND --help' explains a command.\n", cmd.Name())
	}
}

// usageLine is cobra's without the "[flags]" that says nothing.
func usageLine(cmd *cobra.Command) string {
	if cmd.HasParent() {
		return cmd.Parent().CommandPath() + " " + cmd.Use
	}
	return cmd.Use
}

func (h *helpWriter) head(s string) { h.WriteString("\n" + h.p.Paint(s+":", output.Strong) + "\n") }

func (h *helpWriter) paragraph(text string) {
	for _, line := range output.Wrap(text, h.width) {
		h.WriteString(line + "\n")
	}
}

// columns prints names with their explanations beside them.
func (h *helpWriter) columns(pairs [][2]string) {
	left := 0
	for _, p := range pairs {
		if w := output.Width(p[0]); w <= 30 {
			left = max(left, w)
		}
	}
	left = max(left, 16)
	for _, p := range pairs {
		lines := output.Wrap(p[1], max(h.width-left-4, 20))
		if output.Width(p[0]) > left {
			h.WriteString("  " + p[0] + "\n")
			p[0] = ""
		}
		for i, line := range lines {
			if i > 0 {
				p[0] = ""
			}
			h.WriteString(strings.TrimRight(fmt.Sprintf("  %-*s  %s", left, p[0], line), " ") + "\n")
		}
	}
}

func (h *helpWriter) commands(cmd *cobra.Command) {
	list := func(group string) {
		var pairs [][2]string
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() && c.GroupID == group {
				pairs = append(pairs, [2]string{c.Name(), c.Short})
			}
		}
		h.columns(pairs)
	}
	if !cmd.HasAvailableSubCommands() {
		return
	}
	if len(cmd.Groups()) == 0 {
		h.head("Commands")
		list("")
	}
	for _, g := range cmd.Groups() {
		h.head(g.Title)
		list(g.ID)
	}
}

// flags prints a command's own flags (the root's: the global ones), those
// of settings by their section.
func (h *helpWriter) flags(cmd *cobra.Command) {
	sections := map[string][][2]string{}
	cmd.Flags().SortFlags, cmd.PersistentFlags().SortFlags = false, false
	fs := cmd.LocalFlags()
	fs.SortFlags = false
	fs.VisitAll(func(f *flag) {
		if f.Hidden {
			return
		}
		head := "Flags"
		if s := f.Annotations[settings.SectionAnnotation]; len(s) > 0 {
			head = s[0]
		}
		sections[head] = append(sections[head], [2]string{flagName(f), f.Usage + defaultOf(f)})
	})
	if own := sections["Flags"]; own != nil {
		h.head("Flags")
		h.columns(own)
	}
	for _, s := range settings.Sections {
		if pairs := sections[string(s)]; pairs != nil {
			h.head(string(s))
			h.columns(pairs)
		}
	}
}

func flagName(f *flag) string {
	short := "    "
	if f.Shorthand != "" {
		short = "-" + f.Shorthand + ", "
	}
	value := placeholder(f)
	if value != "" {
		value = " " + value
	}
	return short + "--" + f.Name + value
}

// placeholder is what stands for a flag's value: words in upper case are
// ours, others are pflag's names of types.
func placeholder(f *flag) string {
	t := f.Value.Type()
	if names := f.Annotations[valueAnnotation]; len(names) > 0 {
		return names[0]
	}
	switch t {
	case "bool", "":
		return ""
	case "string", "stringArray":
		return strings.ToUpper(f.Name[strings.LastIndexByte(f.Name, '-')+1:])
	case "int", "int64", "count":
		return "N"
	case "duration":
		return "TIME"
	}
	return t
}

// valueAnnotation names the placeholder of a flag's value.
const valueAnnotation = "value"

// named gives a flag's value a placeholder.
func named(fs *pflag.FlagSet, flagName, value string) {
	f := fs.Lookup(flagName)
	if f.Annotations == nil {
		f.Annotations = map[string][]string{}
	}
	f.Annotations[valueAnnotation] = []string{value}
}

func defaultOf(f *flag) string {
	if slices.Contains([]string{"", "false", "[]", "0", "0s", "-1"}, f.DefValue) || strings.Contains(f.Usage, "default") {
		return ""
	}
	return " (default " + f.DefValue + ")"
}

// Help writes a command's help as it is printed where there is no terminal.
func Help(cmd *cobra.Command, w io.Writer) {
	newApp(nil, w, io.Discard).help(cmd, nil)
}
