package cli

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/cli/output"
	"github.com/spf13/cobra"
)

// every calls f for a command and all below it.
func every(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, c := range cmd.Commands() {
		every(c, f)
	}
}

func TestHelpFitsATerminalOf80Columns(t *testing.T) {
	n := 0
	every(Root(), func(cmd *cobra.Command) {
		var b strings.Builder
		Help(cmd, &b)
		n++
		for line := range strings.Lines(b.String()) {
			if w := output.Width(strings.TrimSuffix(line, "\n")); w > 80 {
				t.Errorf("%s --help: %d columns: %s", cmd.CommandPath(), w, line)
			}
		}
	})
	if n < 80 {
		t.Errorf("only %d commands were seen", n)
	}
}

func TestSetOffersOnlyWhatCanBeSet(t *testing.T) {
	every(Root(), func(cmd *cobra.Command) {
		if cmd.Name() != "set" {
			return
		}
		for _, key := range []string{"image", "pool", "arch", "power", "type", "ipv4", "ipv6"} {
			if strings.Contains(cmd.Long, "\n    "+key+" ") {
				t.Errorf("%s --help lists %s, which can't be set", cmd.CommandPath(), key)
			}
		}
		if !strings.Contains(cmd.Long, "\n    label") {
			t.Errorf("%s --help lists no labels:\n%s", cmd.CommandPath(), cmd.Long)
		}
	})
}
