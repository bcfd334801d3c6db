package monitor

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/virtio/console"
)

// Port is a line between a program in the guest, which finds it by its name,
// and the host: a stream socket that listens, whose latest connection is the
// host's end, or else the file itself.
type Port struct {
	Name string
	File *os.File
}

// flushTime is how long what a guest wrote last may take to be read.
const flushTime = 5 * time.Second

// lines are the ports of a machine.
type lines struct {
	*console.Device
	listeners map[string]net.Listener
}

// newLines takes the files of ports over.
func newLines(ports []Port) (_ *lines, err error) {
	l := &lines{listeners: map[string]net.Listener{}}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	var names []string
	for _, p := range ports {
		names = append(names, p.Name)
	}
	if l.Device, err = console.New(names...); err != nil {
		for _, p := range ports {
			p.File.Close()
		}
		return nil, err
	}
	for i, p := range ports {
		if err = l.add(p); err != nil {
			for _, left := range ports[i+1:] {
				left.File.Close()
			}
			return nil, fmt.Errorf("port %q: %w", p.Name, err)
		}
	}
	return l, nil
}

func (l *lines) add(p Port) error {
	fd := int(p.File.Fd())
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && on != 0 {
		defer p.File.Close()
		l.listeners[p.Name], err = net.FileListener(p.File)
		return err
	}
	f, err := waitable(p.File)
	if err != nil {
		return err
	}
	return l.Connect(p.Name, &file{File: f, closed: make(chan struct{})})
}

// file is the host's end of a port that is no connection: that there is
// nothing to be read from it, or nothing more, doesn't end it.
type file struct {
	*os.File
	once   sync.Once
	closed chan struct{}
}

// Read implements console.Conn.
func (f *file) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	if n == 0 && err != nil {
		<-f.closed
	}
	return n, err
}

// Close implements console.Conn.
func (f *file) Close() error {
	f.once.Do(func() { close(f.closed) })
	return f.File.Close()
}

// waitable is a file on which reads and writes can be ended: one that Go's
// poller knows, if it is of a kind for that.
func waitable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// accept takes connections until ctx ends, and returns when nobody does any
// more.
func (l *lines) accept(ctx context.Context) {
	var wg sync.WaitGroup
	for name, listener := range l.listeners {
		stop := context.AfterFunc(ctx, func() { listener.Close() })
		defer stop()
		wg.Go(func() {
			for {
				c, err := listener.Accept()
				if err != nil {
					return
				}
				_ = l.Connect(name, c.(console.Conn)) // the port is there
			}
		})
	}
	wg.Wait()
}

// device is the lines as one of the machine's devices.
func (l *lines) device() *device {
	return &device{Device: vmm.Device{Name: "console", Device: l.Device}, close: l.close}
}

func (l *lines) close() {
	for _, listener := range l.listeners {
		listener.Close()
	}
	if l.Device != nil {
		l.Device.Close()
	}
}
