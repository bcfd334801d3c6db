package qemu

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
)

// reasons are ours for QEMU's causes of a shutdown (qapi/run-state.json,
// ShutdownCause), which its trace events give by number. What isn't here tells
// no more than the process's own end.
var reasons = []struct{ cause, reason string }{
	{"none", ""},
	{"host-error", "crash"},
	{"host-qmp-quit", "poweroff"}, // by Save
	{"host-qmp-system-reset", ""},
	{"host-signal", "killed"},
	{"host-ui", "killed"},
	{"guest-shutdown", "poweroff"},
	{"guest-reset", "reboot"},
	{"guest-panic", "panic"},
}

// Ended implements machine.Monitor. QEMU tells it by an event if somebody
// listens, and by a line in a file in any case; the guest, once it has taken
// QEMU over, might write to either, and tells nothing then but how it fares
// itself.
func (m *monitor) Ended(g *machine.Guest) api.ExitStatus {
	m.mu.Lock()
	s := m.sessions[g.ID]
	if s != nil && s.pid == g.PID {
		delete(m.sessions, g.ID)
	}
	m.mu.Unlock()
	cause := noted(g.Dir)
	if s != nil && s.pid == g.PID {
		if told := s.ended(); cause == "" {
			cause = told
		}
	}
	for _, r := range reasons {
		if r.cause == cause {
			if r.reason == "reboot" && !g.System && !g.Firmware {
				break // of an application guest: how far it was tells what it means
			}
			return api.ExitStatus{Reason: r.reason}
		}
	}
	return api.ExitStatus{}
}

// ended closes the session of a QEMU that has ended, and says what it told.
func (s *session) ended() string {
	s.mu.Lock()
	drained := s.drained
	s.mu.Unlock()
	if drained != nil {
		// The last events are on the way. The end of the connection comes
		// behind them, with the process's.
		select {
		case <-drained:
		case <-time.After(time.Second):
		}
	}
	s.close()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shutdown
}

var noteRE = regexp.MustCompile(`(?m)^(?:.* )?qemu_system_shutdown_request reason=(\d)$`)

// noted is the cause in a guest's end file; empty if there is none.
func noted(dir string) string {
	f, err := os.Open(filepath.Join(dir, endFile))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return ""
	}
	return parseNote(b)
}

// parseNote finds the first cause, which is the one that counts for QEMU.
func parseNote(b []byte) string {
	found := noteRE.FindSubmatch(b)
	if found == nil {
		return ""
	}
	if n := int(found[1][0] - '0'); n < len(reasons) {
		return reasons[n].cause
	}
	return ""
}
