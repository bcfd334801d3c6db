package cli

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// zeros is an input without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A guest that gets no CPU neither ends its command nor takes its input, and
// its daemon may answer late: the client can be ended all the same.
func TestClientCanBeEndedWhateverTheGuestDoes(t *testing.T) {
	kill := func(sig syscall.Signal) { _ = syscall.Kill(os.Getpid(), sig) }
	const deaf = "trap '' TERM HUP; echo ready; exec sleep 1000"
	for name, tt := range map[string]struct {
		script string
		stdin  io.Reader // nil: none
		grace  time.Duration
		on     map[string]syscall.Signal // by what was seen
		hold   syscall.Signal            // while the session is opened
		status int
	}{
		"late":           {deaf, nil, 50 * time.Millisecond, map[string]syscall.Signal{"ready\n": syscall.SIGTERM}, 0, 143},
		"late at hangup": {deaf, nil, 50 * time.Millisecond, map[string]syscall.Signal{"ready\n": syscall.SIGHUP}, 0, 129},
		"stuck":          {deaf, zeros{}, 50 * time.Millisecond, map[string]syscall.Signal{"ready\n": syscall.SIGTERM}, 0, 143},
		"twice": {
			"trap 'echo caught' TERM; echo ready; while :; do sleep 0.05; done", nil, time.Hour,
			map[string]syscall.Signal{"ready\n": syscall.SIGTERM, "ready\ncaught\n": syscall.SIGTERM},
			0, 143,
		},
		"not yet open": {deaf, nil, time.Hour, nil, syscall.SIGINT, 130},
	} {
		t.Run(name, func(t *testing.T) {
			old := leaveTime
			leaveTime = tt.grace
			t.Cleanup(func() { leaveTime = old })
			f := newFake(t)
			if tt.hold != 0 {
				f.hold = func() { kill(tt.hold) }
			}
			args := []string{"exec", "web", "--", "sh", "-c", tt.script}
			if tt.stdin != nil {
				args = append([]string{"exec", "-i"}, args[1:]...)
			}
			status, _, errs := runSeen(t, func(out string) {
				if sig, ok := tt.on[out]; ok {
					kill(sig)
				}
			}, f.socket, tt.stdin, args...)
			if status != tt.status || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "left web") || !strings.Contains(errs, "may still be running") {
				t.Errorf("status %d, %q", status, errs)
			}
		})
	}
}
