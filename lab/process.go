package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is one run of a host's QEMU, with what serves it.
type process struct {
	cmd     *exec.Cmd
	console *os.File
	serving sync.WaitGroup
	ends    []net.Conn // our ends of what it is connected to

	done chan struct{} // closed when it has ended
	err  error         // why; read after done
}

// start starts the host's QEMU. It ends with this process.
func (h *Host) start() (_ *process, err error) {
	p := &process{done: make(chan struct{})}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			p.hangUp()
			p.serving.Wait()
		}
	}()
	for _, serve := range []func(net.Conn){
		func(c net.Conn) { h.lab.Wire.Serve(h.Name, c) },
		func(c net.Conn) {
			if err := h.disk.Serve(c); err != nil {
				h.lab.Tell(fmt.Sprintf("%s: its disk: %v", h.Name, err))
			}
		},
	} {
		ours, f, err := pair()
		if err != nil {
			return nil, err
		}
		theirs, p.ends = append(theirs, f), append(p.ends, ours)
		p.serving.Go(func() { serve(ours) })
	}
	l, err := h.listen()
	if err != nil {
		return nil, err
	}
	theirs = append(theirs, l)
	if p.console, err = os.OpenFile(h.path("console"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	defer p.console.Close()
	p.cmd = exec.Command(Emulator, h.arguments()...)
	p.cmd.Stdout, p.cmd.ExtraFiles = p.console, theirs
	// A group of its own, so that Ctrl-C is the lab's alone.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	complaints := &bytes.Buffer{}
	p.cmd.Stderr = complaints
	started := make(chan error)
	go func() {
		// The signal comes when the thread that started it ends
		// (PR_SET_PDEATHSIG(2const)).
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = p.cmd.Wait()
		p.hangUp()
		p.serving.Wait()
		if said := strings.TrimSpace(complaints.String()); err != nil && said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		p.err = err
		close(p.done)
		h.ended(p)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the emulator: %w", err)
	}
	return p, nil
}

func (p *process) hangUp() {
	for _, c := range p.ends {
		c.Close()
	}
}

// kill ends it at once, and returns when it has.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// pair makes a connection, and the descriptor of its other end.
func pair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours := os.NewFile(uintptr(fds[0]), "ours")
	defer ours.Close()
	theirs := os.NewFile(uintptr(fds[1]), "theirs")
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// listen makes the socket by which the agent's port is reached.
func (h *Host) listen() (*os.File, error) {
	name := h.path("agent")
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}
