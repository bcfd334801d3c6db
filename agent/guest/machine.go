package guest

import (
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// Machine is an application guest that is a machine: its PID 1 is all that
// there is between the entry point's streams and the machine's devices.
type Machine struct {
	Process // with TTY it gets a terminal of its own
	// Stdin says that the agent feeds the entry point's input.
	Stdin bool
	// Stdout and Stderr get what the entry point writes, without TTY.
	Stdout, Stderr io.Writer
	// Terminal is the other side of the entry point's terminal, with TTY.
	Terminal io.ReadWriter
	// Cgroup is where all that is started goes, of version 2; nil for none.
	Cgroup *os.File
	// Devices sees to those that come and go; nil if nobody does.
	Devices Devices
}

// Devices are what comes and goes while a machine runs. Its methods may be
// called from any goroutine.
type Devices interface {
	Mount(wire.Volume) error
	Unmount(wire.Volume) error
	Link(wire.Link) error
	Grow(wire.Volume) error
}

// drainGrace is how long the host may take to read the last output. No more
// than a pipe's size is left by then.
const drainGrace = 10 * time.Second

// InitMachine is Init for a machine: it makes the entry point's streams and
// relays them. When the entry point has ended it kills everything else, so
// that the output has an end, and returns when that is written.
func InitMachine(m Machine, l net.Listener, started func(error)) api.ExitStatus {
	signals := catch()
	r := newReaper(true)
	r.cgroup = m.Cgroup
	err := prepareSelf()
	var main *entryPoint
	if err == nil {
		main, err = m.start(r)
	}
	started(err)
	if err != nil {
		return api.ExitStatus{Code: startCode(err), Reason: "exit"}
	}
	output := main.relay(m)
	s := newServer(m.Process, r)
	s.entry, s.devices = main, m.Devices
	go serveFirst(s, l)
	forward(signals, main.child)
	_ = unix.Kill(-1, unix.SIGKILL) // ESRCH if there is nobody
	select {
	case <-output:
	case <-time.After(drainGrace):
	}
	return main.child.exitStatus()
}

// InitMaintenance is PID 1 of a machine that has nothing to run but the
// agent. disk is the directory that holds the root's writable layer, upper,
// and work. It returns when it is asked to power off.
func InitMaintenance(env []string, disk *os.File, l net.Listener) (reboot bool) {
	r := newReaper(true)
	if err := prepareSelf(); err != nil {
		slog.Error("agent", "error", err)
		return false
	}
	s := newServer(Process{Env: env}, r)
	s.disk = disk
	off := make(chan bool, 1)
	s.powerOff = func(reboot bool) error {
		select {
		case off <- reboot:
		default:
		}
		return nil
	}
	go serveFirst(s, l)
	return <-off
}

// ServeMachine is Serve for an agent beside the init of a machine, which it
// may shut down. Without devices it leaves those that come to the system.
func ServeMachine(l net.Listener, devices Devices) error {
	if err := prepareSelf(); err != nil {
		return err
	}
	r := newReaper(false)
	defer r.close()
	s := newServer(Process{Env: ownEnv()}, r)
	s.powerOff, s.devices = s.shutDown, devices
	return s.serve(l)
}

// ownEnv is the agent's own environment without what tunes its runtime.
func ownEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(runtimeEnv, name)
	})
}

// serveFirst serves for PID 1, which ends otherwise.
func serveFirst(s *server, l net.Listener) {
	if err := s.serve(l); err != nil {
		slog.Error("agent: serving ended", "error", err)
	}
}

// entryPoint is the guest's entry point.
type entryPoint struct {
	child *child
	stdio *stdio // nil if its streams are somebody else's

	mu     sync.Mutex // guards its input
	closed bool
}

func (m *Machine) start(r *reaper) (*entryPoint, error) {
	cmd, err := prepare(m.Args, m.Env, m.User, m.WorkDir, m.TTY)
	if err != nil {
		return nil, err
	}
	var s *stdio
	if m.TTY {
		s, err = newTerminal(wire.Size{}, true, cmd.user)
	} else {
		s, err = newPipes(m.Stdin, cmd.user)
	}
	if err != nil {
		return nil, err
	}
	c, err := cmd.start(r, s.theirs, m.TTY)
	s.started()
	if err != nil {
		s.hangUp()
		return nil, err
	}
	return &entryPoint{child: c, stdio: s}, nil
}

// relay begins to carry the entry point's output. The returned channel is
// closed when it has ended.
func (e *entryPoint) relay(m Machine) <-chan struct{} {
	var all sync.WaitGroup
	if m.TTY {
		all.Go(func() { carry(m.Terminal, e.stdio.stdout) })
		go carry(e.stdio.stdout, m.Terminal) // it ends with the machine
	} else {
		all.Go(func() { carry(m.Stdout, e.stdio.stdout) })
		all.Go(func() { carry(m.Stderr, e.stdio.stderr) })
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	return done
}

// carry copies until from has ended. What can't be written is dropped: that
// the host's end is broken mustn't hold up or end the entry point.
func carry(to io.Writer, from io.Reader) {
	var buf buffer
	broken := false
	for {
		p := buf.bytes()
		n, err := from.Read(p)
		if n > 0 && !broken {
			_, werr := to.Write(p[:n])
			broken = werr != nil
		}
		if err != nil {
			return
		}
		buf.used(n)
	}
}

// exitStatus is how the process ended.
func (c *child) exitStatus() api.ExitStatus {
	st := api.ExitStatus{Code: c.exitCode(), Reason: "exit"}
	if c.status.Signaled() {
		st.Signal = unix.SignalName(c.status.Signal())
	}
	st.OOMKilled = st.Code == 137 && oomKills() > 0
	return st
}

// oomKills counts the processes that the kernel has killed for want of memory
// since it booted.
func oomKills() (n uint64) {
	b, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ = strconv.ParseUint(strings.TrimSpace(count), 10, 64)
		}
	}
	return n
}
