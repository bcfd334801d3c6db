package cli

import (
	"strings"

	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
)

// settable tells whether set takes the key: an instance's power has verbs of
// its own.
func settable(s *settings.Setting) bool { return s.Key != "power" }

// settingsHelp lists the keys of a set command.
func settingsHelp(table settings.Table) string {
	var b strings.Builder
	for _, sec := range append([]settings.Section{""}, settings.Sections...) {
		head := "  " + string(sec) + ":\n"
		if sec == "" {
			head = "  Keys:\n"
		}
		for _, s := range table {
			if s.Section != sec || !settable(s) {
				continue
			}
			b.WriteString(head)
			head = ""
			key := s.Key
			if s.IsMap() {
				key += ".NAME"
			}
			for i, line := range output.Wrap(s.Doc, 52) {
				if i > 0 {
					key = ""
				}
				b.WriteString("    " + key + strings.Repeat(" ", max(20-len(key), 1)) + line + "\n")
			}
		}
	}
	return strings.TrimRight(b.String(), "\n")
}

// completeSet offers names, then keys, then the values that a key allows.
func (a *app) completeSet(table settings.Table, find lookup) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeNames(find, nil, prefix)
		}
		var out []cobra.Completion
		if key, value, ok := strings.Cut(prefix, "="); ok {
			if s, _, err := table.Find(key); err == nil {
				for _, c := range s.Choices {
					if strings.HasPrefix(c, value) {
						out = append(out, key+"="+c)
					}
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		}
		for _, s := range table {
			end := "="
			if s.IsMap() {
				end = "."
			}
			if strings.HasPrefix(s.Key, prefix) && settable(s) {
				out = append(out, s.Key+end+"\t"+s.Doc)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}
