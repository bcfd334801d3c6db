package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// wired is a monitor that finds its network in its namespace.
type wired struct {
	*fake
	calls *[]string
	fail  error
}

func (w *wired) Wire(_ context.Context, p *Plan, pid int) error {
	*w.calls = append(*w.calls, fmt.Sprint("wire ", len(p.Taps), inside(pid)))
	return w.fail
}

// inside tells whether a process has a network of its own and is not what it
// is to become yet.
func inside(pid int) string {
	own, _ := os.Readlink("/proc/self/ns/net")
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return fmt.Sprintf(" own=%t behind=%t", err == nil && own != its, !strings.HasPrefix(exe, "/memfd:cleave-agent"))
}

func TestNetworkIsThereBeforeTheMonitor(t *testing.T) {
	for name, fail := range map[string]error{"wired": nil, "that fails": errors.New("no such wire")} {
		t.Run(name, func(t *testing.T) {
			var calls []string
			e := newEngine(t, &wired{&fake{script: "sleep 1000"}, &calls, fail})
			s := ownSystem(t)
			s.Taps = func(context.Context) ([]*os.File, error) {
				t.Error("taps are asked for")
				return nil, nil
			}
			s.AttachNet = func(_ context.Context, pid int) error {
				calls = append(calls, "attach"+inside(pid))
				return nil
			}
			if fail == nil {
				start(t, e, s)
			} else if _, err := e.Start(t.Context(), s); !errors.Is(err, fail) {
				t.Errorf("error %v", err)
			}
			if d := cmp.Diff([]string{"attach own=true behind=false", "wire 0 own=true behind=false"}, calls); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestTapsAreTheMonitorsAndClosedHere(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f := &fake{script: `echo through the tap >&4; sleep 1000`}
	e := newEngine(t, &passing{f})
	s := ownSystem(t)
	s.Taps = func(context.Context) ([]*os.File, error) { return []*os.File{w}, nil }
	start(t, e, s)
	buf := make([]byte, 64)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "through the tap\n" {
		t.Errorf("read %q, error %v", buf[:n], err)
	}
	if err := w.Close(); !errors.Is(err, os.ErrClosed) {
		t.Error("the descriptor is open here")
	}
	if err := e.Signal(t.Context(), s.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	exit(t, e, s.ID)
	if n, err := r.Read(buf); n != 0 || err == nil { // nobody has it any more
		t.Errorf("read %q, error %v", buf[:n], err)
	}
}

// passing hands its taps on.
type passing struct{ *fake }

func (p *passing) Command(ctx context.Context, plan *Plan) (*Command, error) {
	c, err := p.fake.Command(ctx, plan)
	for _, tap := range plan.Taps {
		c.File(tap)
	}
	return c, err
}
