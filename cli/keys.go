package cli

import (
	"fmt"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
)

// settable tells whether set takes the key: some are chosen for good, and an
// instance's power has verbs of its own.
func settable(s *settings.Setting) bool { return !s.Fixed && s.Key != "power" }

// The keys are laid out for a terminal of 80 columns: the longest, which is
// cloud-init.network-config, has a blank behind it.
const (
	helpTable = 78
	keyIndent = 4
	keyWidth  = 26
)

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
			for i, line := range output.Wrap(s.Doc, helpTable-keyIndent-keyWidth) {
				if i > 0 {
					key = ""
				}
				fmt.Fprintf(&b, "%*s%-*s%s\n", keyIndent, "", keyWidth, key, line)
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

// inUsersWords is the message of an error in which the field that it is about
// has the name of the setting.
func inUsersWords(e *api.Error) string {
	key := e.Field
	for _, t := range []settings.Table{settings.Instance, settings.Volume, settings.Network, settings.Pool} {
		if k := t.KeyOf(e.Field); k != e.Field {
			key = k
			break
		}
	}
	text := e.Message
	if key == e.Field {
		return text
	}
	inSpec := strings.TrimPrefix(e.Field, "spec.")
	last := e.Field[strings.LastIndexByte(e.Field, '.')+1:]
	for _, name := range []string{e.Field, inSpec, last} {
		// A word like init may mean something else, workDir is the field's.
		own := strings.Contains(name, ".") || strings.ToLower(name) != name
		if at := strings.Index(text, name); at >= 0 && (own || strings.HasPrefix(text, name+" ")) {
			return text[:at] + key + text[at+len(name):]
		}
	}
	return text
}
