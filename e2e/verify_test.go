package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/verify"
)

// changed are the questions that each wall is known to answer otherwise.
var changed = map[string][]string{
	"container": {"a thread's own descriptors", "a device node", "mounting"},
	"pvm":       {"a nameless file gets a name"},
	"vm":        {"a nameless file gets a name"},
}

// TestVerify holds each kind of wall to the properties that it is sold for.
// What a wall changes is known; it must not become more in silence.
func TestVerify(t *testing.T) {
	h := newWalls(t)
	var r verify.Report
	if err := json.Unmarshal([]byte(h.do("verify", "--quick", "-o", "json")), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Results) != len(kinds) {
		t.Fatalf("got %+v", r.Results)
	}
	for i, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			got := r.Results[i]
			if got.Error != nil || string(got.Kind) != kind || got.Engine == "" {
				t.Fatalf("%+v", got)
			}
			for _, d := range got.Differences {
				if !slices.Contains(changed[kind], d.Name) {
					t.Errorf("%s: %s: %s outside, %s inside", d.Area, d.Name, d.Outside, d.Inside)
				}
			}
			if got.Asked < 75 || len(got.Efficiency) < 7 || len(got.Control) < 9 {
				t.Errorf("%d questions, %d figures, %d attempts", got.Asked, len(got.Efficiency), len(got.Control))
			}
			for _, a := range got.Control {
				// With cgroup version 1 nothing limits what User Mode Linux writes,
				// and the limit is refused.
				if !a.Held && (a.Refused == "" || kind != "pvm") {
					t.Errorf("%+v", a)
				}
			}
		})
	}
	if r.Violated() {
		t.Error("violated")
	}
	if names := h.names(); len(names) != 0 {
		t.Errorf("guests are left: %q", names)
	}
}

// escaped is a probe that claims to have reached a file of the host, and
// nothing else.
const escaped = `#!/bin/sh
case $1 in
ask|measure) echo '[]' ;;
sink) echo listening; exec sleep 1000 ;;
find) echo '{"amount": 1}' ;;
see|reach) echo '{"amount": 0}' ;;
*) echo '{"amount": 1, "seconds": 1}' ;;
esac
`

// TestVerifyFailsWhereAGuestIsNotHeld has verify be told of a guest that
// reached what it may not.
func TestVerifyFailsWhereAGuestIsNotHeld(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	program, err := os.ReadFile(filepath.Join(h.bin, "cleave"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cleave": program, "cleave-probe": []byte(escaped)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := exec.CommandContext(t.Context(), filepath.Join(dir, "cleave"), "verify", "--kind", "container")
	c.Env = append(os.Environ(), "CLEAVE_SOCKET="+filepath.Join(h.run, "cleave.sock"))
	out, err := c.Output()
	if c.ProcessState.ExitCode() != 1 {
		t.Errorf("it ended as %v", err)
	}
	var broken []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "NOT HELD") {
			broken = append(broken, line)
		}
	}
	if len(broken) != 1 || !strings.Contains(broken[0], "the host's files") {
		t.Errorf("it says:\n%s", out)
	}
	if names := h.names(); len(names) != 0 {
		t.Errorf("guests are left: %q", names)
	}
}
