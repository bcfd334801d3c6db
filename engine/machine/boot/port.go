package boot

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/link"
)

// port is a line of bytes to the host: a virtio-serial port or a serial line.
type port struct {
	f   *os.File
	raw syscall.RawConn
	tty bool

	// hush keeps Read from telling that the host's end is closed.
	hush bool
	told bool
}

func openPort(dev string) (*port, error) {
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dev, Err: err}
	}
	return newPort(fd, dev)
}

// newPort takes over a descriptor, which doesn't block.
func newPort(fd int, dev string) (*port, error) {
	p := &port{f: os.NewFile(uintptr(fd), dev)}
	if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil {
		p.tty = true
		makeRaw(t)
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, t); err != nil {
			p.f.Close()
			return nil, fmt.Errorf("%s: %w", dev, err)
		}
	}
	var err error
	if p.raw, err = p.f.SyscallConn(); err != nil {
		p.f.Close()
		return nil, err
	}
	return p, nil
}

// makeRaw is cfmakeraw(3), with a parity-free line and no wait for a modem.
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag &^= unix.CSIZE | unix.PARENB
	t.Cflag |= unix.CS8 | unix.CLOCAL
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

// Read waits for the host's end to open again when it is closed, which it
// tells once (link.ErrHungUp). A virtio-serial port reads as ended then, and
// wakes its readers when the host's end opens (Linux,
// drivers/char/virtio_console.c: port_fops_read).
func (p *port) Read(b []byte) (int, error) {
	var n int
	var err error
	waitErr := p.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		switch {
		case err == unix.EAGAIN, err == unix.EINTR:
			return false
		case n == 0 && err == nil && len(b) > 0:
			if p.told || p.hush {
				return false
			}
			p.told = true
			err = link.ErrHungUp
		case n > 0:
			p.told = false
		}
		return true
	})
	if waitErr != nil {
		return 0, waitErr
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }

func (p *port) Close() error { return p.f.Close() }

// fd is the descriptor, which still doesn't block.
func (p *port) fd() (fd uintptr) {
	_ = p.raw.Control(func(n uintptr) { fd = n })
	return fd
}

// drain waits until the host has what was written, but not for ever.
func (p *port) drain(grace time.Duration) {
	if p == nil {
		return
	}
	if !p.tty {
		// Writing is possible again when the host has consumed the last.
		_ = p.raw.Control(func(fd uintptr) {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(grace.Milliseconds()))
		})
		return
	}
	sent := make(chan struct{})
	go func() {
		_ = p.raw.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TCSBRK, 1) }) // tcdrain(3)
		close(sent)
	}()
	select {
	case <-sent:
	case <-time.After(grace):
	}
}

var _ io.ReadWriteCloser = (*port)(nil)
