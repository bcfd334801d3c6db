package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/virtio/vsock"
)

// Vsock is a guest's socket device: streams between its ports and unix sockets
// of the host (package vsock). A process that can open nothing gets both sides
// as descriptors.
type Vsock struct {
	CID uint32
	// Listener is a socket on which programs of the host ask for a port of the
	// guest; nil for none.
	Listener *os.File
	// Dial is one end of NewDialer's, nil for guests that can't connect to the
	// host.
	Dial *os.File
}

// newVsock takes the files over.
func newVsock(v Vsock) (_ *device, err error) {
	o := vsock.Options{CID: v.CID}
	defer func() {
		if err != nil {
			err = fmt.Errorf("sockets: %w", err)
			if o.Listener != nil {
				o.Listener.Close()
			}
		}
	}()
	done := func() {}
	if v.Dial != nil {
		c, err := unixConn(v.Dial)
		if err != nil {
			return nil, err
		}
		d := &asker{conn: c}
		o.Dial, done = d.dial, func() { c.Close() }
	}
	if v.Listener != nil {
		o.Listener, err = net.FileListener(v.Listener)
		v.Listener.Close()
		if err != nil {
			done()
			return nil, err
		}
	}
	d, err := vsock.New(o)
	if err != nil {
		done()
		return nil, err
	}
	return &device{
		Device: vmm.Device{Name: "vsock", Device: d},
		close:  func() { done(); d.Close() }, // in this order: who asks is told
	}, nil
}

// unixConn takes a file over.
func unixConn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%s is no unix socket", f.Name())
	}
	return u, nil
}

// asker has connections made by a Dialer: a message has a port, its reply a
// byte, which is 0 if a connection comes with it.
type asker struct {
	mu   sync.Mutex
	conn *net.UnixConn
}

func (a *asker) dial(port uint32) (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.conn.Write(binary.LittleEndian.AppendUint32(nil, port)); err != nil {
		return nil, err
	}
	b, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, k, _, _, err := a.conn.ReadMsgUnix(b, oob)
	switch {
	case err != nil:
		return nil, err
	case n != 1 || b[0] != 0 || k == 0:
		return nil, fmt.Errorf("nobody is at port %d of the host", port)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:k])
	if err != nil {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	return unixConn(os.NewFile(uintptr(fds[0]), "connection"))
}

// Dialer makes the connections that a monitor asks for whose process can make
// none: to PATH_P for port P. It has nothing to do with what goes over them.
type Dialer struct {
	conn *net.UnixConn
	done chan struct{}
}

// dialTime is how long whoever listens may take to be connected to.
const dialTime = 5 * time.Second

// NewDialer begins to make connections; the file is for Vsock.Dial.
func NewDialer(path string) (*Dialer, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "dial")
	c, err := unixConn(os.NewFile(uintptr(fds[0]), "dialer"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	d := &Dialer{conn: c, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		for d.answer(path) == nil {
		}
	}()
	return d, theirs, nil
}

// answer answers one message.
func (d *Dialer) answer(path string) error {
	b := make([]byte, 5)
	n, err := d.conn.Read(b)
	if err != nil {
		return err
	}
	if n != 4 {
		return errors.New("a message that names no port")
	}
	c, err := net.DialTimeout("unix", fmt.Sprintf("%s_%d", path, binary.LittleEndian.Uint32(b)), dialTime)
	if err != nil {
		_, err = d.conn.Write([]byte{1})
		return err
	}
	defer c.Close()
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	defer f.Close()
	_, _, err = d.conn.WriteMsgUnix([]byte{0}, unix.UnixRights(int(f.Fd())), nil)
	return err
}

// Close ends it.
func (d *Dialer) Close() error {
	err := d.conn.Close()
	<-d.done
	return err
}
