package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab/disk"
)

// Host is one host of a lab.
type Host struct {
	Spec
	Address string // on the wire
	MAC     string

	lab   *Lab
	disk  *disk.Disk
	files string // EROFS of Spec.Files

	booting sync.Mutex // one start at a time

	mu      sync.Mutex
	process *process // nil when it is off
	paused  bool

	dialing sync.Mutex // one session at a time
	session *link.Session
}

// State is what a host is doing.
type State string

// States.
const (
	Off    State = "off"
	On     State = "on" // or on its way
	Paused State = "paused"
)

func newHost(l *Lab, s Spec, n int) (*Host, error) {
	h := &Host{Spec: s, lab: l, Address: fmt.Sprint(network, n), MAC: fmt.Sprintf("52:54:00:87:00:%02x", n)}
	var err error
	if len(s.Files) > 0 {
		h.files = h.path("files")
		if err := writeFiles(h.files, s.Files); err != nil {
			return nil, err
		}
	}
	h.disk, err = disk.Open(h.path("disk"), s.Disk)
	return h, err
}

// State tells what the host is doing.
func (h *Host) State() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.process == nil:
		return Off
	case h.paused:
		return Paused
	}
	return On
}

// Console is the path of the file with all that the host's console said.
func (h *Host) Console() string { return h.path("console") }

// Boot starts the host, and waits until its agent answers, and its daemon if
// it has one.
func (h *Host) Boot(ctx context.Context) error {
	h.booting.Lock()
	defer h.booting.Unlock()
	if h.State() != Off {
		return api.Errorf(api.CodeConflict, "host %s is not off", h.Name)
	}
	var err error
	for i := range tries {
		begin := time.Now()
		if err = h.boot(ctx, i+1); err == nil {
			h.lab.Tell(fmt.Sprintf("%s: up after %s", h.Name, time.Since(begin).Round(100*time.Millisecond)))
			return nil
		}
		h.Kill()
		if !errors.Is(err, errHung) || ctx.Err() != nil {
			break
		}
		h.lab.Tell(fmt.Sprintf("%s: %v, try %d of %d", h.Name, err, i+1, tries))
	}
	return fmt.Errorf("host %s: %w; its console ends with:\n%s", h.Name, err, h.Tail(4<<10))
}

// tries is how often a host is started that hangs.
const tries = 2

// boot starts the host once.
func (h *Host) boot(ctx context.Context, try int) error {
	p, err := h.start()
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.process, h.paused = p, false
	h.mu.Unlock()
	if h.lab.started != nil {
		h.lab.started(h, try)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	watch.Go(func() { cancel(h.watch(ctx, p)) })
	c, err := h.Agent(ctx)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	defer c.Close()
	if !h.Daemon {
		return nil
	}
	// Its socket is there when it answers.
	wait := Command{ExecRequest: api.ExecRequest{Command: []string{"sh", "-c", "until [ -S /run/cleave/cleave.sock ]; do usleep 100000; done"}}}
	if _, err := Exec(ctx, c, wait); err != nil {
		return cmp.Or(context.Cause(ctx), fmt.Errorf("wait for its daemon: %w", err))
	}
	return nil
}

// errOff is what is asked of a host that is off.
func (h *Host) errOff() error {
	return api.Errorf(api.CodeConflict, "host %s is off", h.Name).WithHint("`lab power-on %s`", h.Name)
}

// Dial connects to the host's agent.
func (h *Host) Dial(ctx context.Context) (net.Conn, error) {
	h.dialing.Lock()
	defer h.dialing.Unlock()
	h.mu.Lock()
	p := h.process
	h.mu.Unlock()
	if p == nil {
		return nil, h.errOff()
	}
	if h.session != nil {
		select {
		case <-h.session.Closed():
			h.session = nil
		default:
			return h.session.Open(ctx)
		}
	}
	var d net.Dialer
	ch, err := d.DialContext(ctx, "unix", h.path("agent"))
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", h.Name, err)
	}
	if h.session, err = link.NewSession(ctx, ch); err != nil {
		return nil, fmt.Errorf("host %s: its agent doesn't answer: %w", h.Name, err)
	}
	return h.session.Open(ctx)
}

// Agent connects to the host's agent. The client must be closed.
func (h *Host) Agent(ctx context.Context) (*agent.Client, error) {
	conn, err := h.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return agent.Dial(ctx, conn)
}

// Kill ends the host as a crash of its kernel does: nothing in it runs any
// more, and its disk has all that it was given.
func (h *Host) Kill() {
	h.mu.Lock()
	p := h.process
	h.mu.Unlock()
	if p != nil {
		p.kill()
		h.ended(p) // the one who told may come later
	}
}

// LosePower ends the host, and drops what it had not flushed to its disk.
func (h *Host) LosePower() (lost int64) {
	h.Kill()
	return h.disk.LosePower()
}

// PowerOff shuts the host down in good order, and waits for that.
func (h *Host) PowerOff(ctx context.Context) error {
	h.mu.Lock()
	p := h.process
	h.mu.Unlock()
	if p == nil {
		return nil
	}
	c, err := h.Agent(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.PowerOff(ctx, false); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	return h.wait(ctx, p)
}

// Wait waits until the host is off.
func (h *Host) Wait(ctx context.Context) error {
	h.mu.Lock()
	p := h.process
	h.mu.Unlock()
	if p == nil {
		return nil
	}
	return h.wait(ctx, p)
}

func (h *Host) wait(ctx context.Context, p *process) error {
	select {
	case <-p.done:
		h.ended(p)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("host %s is still on: %w", h.Name, context.Cause(ctx))
	}
}

// ended notes that a run of the host has ended.
func (h *Host) ended(p *process) {
	h.mu.Lock()
	if h.process == p {
		h.process, h.paused = nil, false
	}
	h.mu.Unlock()
	h.dialing.Lock()
	defer h.dialing.Unlock()
	if h.session != nil {
		h.session.Close()
		h.session = nil
	}
}

// Pause stops the host's time, as a hypervisor that is too busy does: others
// hear nothing of it, and it notices nothing.
func (h *Host) Pause() error { return h.signal(unix.SIGSTOP, true) }

// Resume lets the host's time go on.
func (h *Host) Resume() error { return h.signal(unix.SIGCONT, false) }

func (h *Host) signal(s unix.Signal, paused bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.process == nil {
		return h.errOff()
	}
	if err := h.process.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("host %s: %w", h.Name, err)
	}
	h.paused = paused
	return nil
}

// Tail is the end of the host's console, n bytes at most.
func (h *Host) Tail(n int64) string {
	f, err := os.Open(h.Console())
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(n, st.Size()))
	got, _ := f.ReadAt(b, st.Size()-int64(len(b)))
	return string(b[:got])
}

// close ends the host for good.
func (h *Host) close() error {
	h.Kill()
	return h.disk.Close()
}
