package qemu

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/engine/machine"
)

func TestKilledMonitorIsACrash(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	g := enginetest.Start(t, e, spec)
	if err := syscall.Kill(g.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := enginetest.WaitExit(t, e, spec.ID); st.Reason != "crash" || st.Signal != "SIGKILL" {
		t.Errorf("it ended as %+v", st)
	}
}

func TestStoppedByUsIsKilled(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	enginetest.Start(t, e, spec)
	if err := e.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if st := enginetest.WaitExit(t, e, spec.ID); st.Reason != "killed" {
		t.Errorf("it ended as %+v", st)
	}
}

// TestHungMonitorHoldsNobody stops QEMU's process: what needs it fails in
// time, and it can be killed.
func TestHungMonitorHoldsNobody(t *testing.T) {
	e := newEngine(t)
	spec := ownSpec(t)
	g := enginetest.Start(t, e, spec)
	if err := syscall.Kill(g.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := e.Pause(t.Context(), spec.ID); !api.IsCode(err, api.CodeTimeout) {
		t.Errorf("pausing gives %v", err)
	}
	if _, err := e.Screenshot(t.Context(), spec.ID); !api.IsCode(err, api.CodeTimeout) {
		t.Errorf("a screenshot gives %v", err)
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("that took %v", took)
	}
	if err := e.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if st := enginetest.WaitExit(t, e, spec.ID); st.Reason != "killed" {
		t.Errorf("it ended as %+v", st)
	}
}

func TestNotesTellTheEnd(t *testing.T) {
	for _, c := range []struct{ note, want string }{
		{"", ""},
		{"qemu_system_shutdown_request reason=6\n", "guest-shutdown"},
		{"1234@1700000000.5:qemu_system_shutdown_request reason=6\n", ""},
		{"1234@1700000000.5: qemu_system_shutdown_request reason=8\n", "guest-panic"},
		{"runstate_set\nqemu_system_shutdown_request reason=4\nqemu_system_shutdown_request reason=6\n", "host-signal"},
		{"qemu_system_shutdown_request reason=9\n", ""},
		{"qemu_system_shutdown_request reason=66\n", ""},
		{"qemu_system_shutdown_request reason=\n", ""},
	} {
		if got := parseNote([]byte(c.note)); got != c.want {
			t.Errorf("%q: %q", c.note, got)
		}
	}
}

func TestEndsAreTold(t *testing.T) {
	m := newMonitor()
	defer m.close()
	for note, want := range map[string]api.ExitStatus{
		"":  {},
		"0": {}, "1": {Reason: "crash"}, "2": {Reason: "poweroff"}, "3": {}, "4": {Reason: "killed"},
		"6": {Reason: "poweroff"}, "7": {Reason: "reboot"}, "8": {Reason: "panic"},
	} {
		dir := t.TempDir()
		if note != "" {
			if err := os.WriteFile(filepath.Join(dir, endFile), []byte("qemu_system_shutdown_request reason="+note+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := m.Ended(&machine.Guest{ID: "x", Dir: dir, System: true}); got != want {
			t.Errorf("reason %q: %+v", note, got)
		}
	}
}

func TestResetOfAnApplicationGuestTellsNothing(t *testing.T) {
	m := newMonitor()
	defer m.close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, endFile), []byte("qemu_system_shutdown_request reason=7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := m.Ended(&machine.Guest{ID: "x", Dir: dir}); got != (api.ExitStatus{}) {
		t.Errorf("it ended as %+v", got)
	}
}

func FuzzParseNote(f *testing.F) {
	f.Add([]byte("qemu_system_shutdown_request reason=6\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseNote(b)
		for _, r := range reasons {
			if r.cause == got {
				return
			}
		}
		if got != "" {
			t.Errorf("%q", got)
		}
	})
}
