package setup

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/internal/handover"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cs [2]*net.UnixConn
	for i, fd := range fds {
		if cs[i], err = handover.Connection(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cs[i].Close() })
	}
	return cs[0], cs[1]
}

func TestSpecAndDescriptorsArrive(t *testing.T) {
	host, guest := pair(t)
	dir := t.TempDir()
	var files []*os.File
	spec := &Spec{Hostname: "h", Terminal: true, Seccomp: make([]byte, 16), NICs: []NIC{{
		Name: "eth0", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateways: []netip.Addr{netip.MustParseAddr("fe80::1")},
	}}}
	for i := range 200 { // more than one batch
		f, err := os.Create(filepath.Join(dir, string(rune('a'+i%26))+string(rune('a'+i/26))))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
		if i >= 3 {
			spec.Mounts = append(spec.Mounts, Mount{Target: f.Name(), Dir: i%2 == 0})
		}
	}
	sent := make(chan error, 1)
	go func() {
		err := Send(host, spec, files)
		if err == nil {
			err = Go(host, &Entry{Process: Process{Args: []string{"x"}}})
		}
		sent <- err
	}()
	got, mounts, err := receive(guest)
	if err != nil {
		t.Fatal(err)
	}
	defer handover.CloseAll(mounts)
	if d := cmp.Diff(spec, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	for i, m := range mounts {
		a, _ := files[i].Stat()
		b, err := m.Stat()
		if err != nil || !os.SameFile(a, b) {
			t.Fatalf("descriptor %d is another file", i)
		}
	}
	if err := waitReadable(guest); err != nil {
		t.Fatal(err)
	}
	var e Entry
	if _, err := handover.Decode(guest, &e); err != nil || len(e.Args) != 1 {
		t.Errorf("entry %+v, error %v", e, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	host.Close()
	if err := waitReadable(guest); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v at the end", err)
	}
}

func TestSpecIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spec Spec
		fds  int
	}{
		"no filter":             {Spec{}, 2},
		"filter of half a step": {Spec{Seccomp: make([]byte, 12)}, 2},
		"too few mounts":        {Spec{Seccomp: make([]byte, 8)}, 1},
		"too many mounts":       {Spec{Seccomp: make([]byte, 8), Terminal: true}, 2},
	} {
		if err := c.spec.check(c.fds); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
