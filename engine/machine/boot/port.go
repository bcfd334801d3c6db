package boot

import (
	"errors"
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

// hangUpGrace is how long the host's end must have been closed before Read
// tells so. When it opens again, what comes over it may be here before the
// news that it is open.
const hangUpGrace = time.Second

// Read waits for the host's end to open again when it is closed, which it
// tells once (link.ErrHungUp). A virtio-serial port reads as ended then, and
// wakes its readers when the host's end opens (Linux,
// drivers/char/virtio_console.c: port_fops_read).
func (p *port) Read(b []byte) (int, error) {
	late := false
	for {
		n, err := p.read(b, late)
		if late = errors.Is(err, os.ErrDeadlineExceeded); !late {
			return n, err
		}
		_ = p.f.SetReadDeadline(time.Time{})
	}
}

// read is a Read that passes its deadline when the host's end has been closed
// for a while; late tells that it did.
func (p *port) read(b []byte, late bool) (n int, err error) {
	waiting := false
	waitErr := p.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		if n != 0 || len(b) == 0 { // data, or an error
			if waiting {
				_ = p.f.SetReadDeadline(time.Time{})
				waiting = false
			}
			p.told = false
			return err != unix.EAGAIN && err != unix.EINTR
		}
		switch {
		case p.tty: // hung up, and for good
			err = io.EOF
			return true
		case p.told || p.hush:
			return false
		case late:
			p.told, err = true, link.ErrHungUp
			return true
		case !waiting:
			_ = p.f.SetReadDeadline(time.Now().Add(hangUpGrace))
			waiting = true
		}
		return false
	})
	switch {
	case waitErr != nil:
		return 0, waitErr
	case err != nil:
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
