package monitor

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

func TestPortsLeadToSocketsAndFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := newLines([]Port{{"agent", socket}, {"stdout", w}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		l.accept(t.Context())
	}()
	g := virtiotest.Plug(t, l.Device)
	g.Start(g.Offered())
	g.Queues[5].Do([][]byte{[]byte("written")})
	b := make([]byte, 7)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "written" {
		t.Errorf("%q, %v", b, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Until it is accepted the guest speaks to nobody.
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() {
		_, err := c.Read(b)
		heard <- err
	}()
	for {
		g.Queues[1].Do([][]byte{[]byte("x")})
		select {
		case err := <-heard:
			if err != nil {
				t.Error(err)
			}
			l.close()
			<-accepted
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestPortsThatCannotBeAreRefused(t *testing.T) {
	for range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := newLines([]Port{{"same", r}, {"same", w}}); err == nil {
			t.Error("two ports of one name were taken")
		}
	}
}
