package setup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cs [2]*net.UnixConn
	for i, fd := range fds {
		if cs[i], err = connection(fd); err != nil {
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
	defer closeAll(mounts)
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
	if _, err := decode(guest, &e); err != nil || len(e.Args) != 1 {
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

func TestWaitTellsHowItWent(t *testing.T) {
	started, failed := `{"started":true}`, `{"error":{"code":"not-found","detail":"no such program"}}`
	for _, c := range []struct {
		answer string
		system bool
		want   string
	}{
		{started, false, ""},
		{started, true, ""},
		{started + failed, true, "no such program"},
		{failed, false, "no such program"},
		{failed, true, "no such program"},
		{"", false, "EOF"},
		{"", true, "EOF"},
		{"garbage", false, "invalid character"},
		{started + "garbage", true, "invalid character"},
	} {
		err := Wait(strings.NewReader(c.answer), c.system)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, system %t: error %v, want %q", c.answer, c.system, err, c.want)
		}
		if strings.Contains(c.want, "program") && !api.IsCode(err, api.CodeNotFound) {
			t.Errorf("error %v has lost its code", err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	var b bytes.Buffer
	if err := send(&b, &Spec{Hostname: "h", Seccomp: make([]byte, 8)}, 2); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(binary.NativeEndian.AppendUint64(nil, 1<<40|5))
	f.Fuzz(func(t *testing.T, in []byte) {
		var s Spec
		r := bytes.NewReader(in)
		n, err := decode(r, &s)
		if err == nil && s.check(n) == nil && len(s.Mounts)+2 > n {
			t.Errorf("%d mounts by %d descriptors", len(s.Mounts), n)
		}
	})
}

func FuzzWait(f *testing.F) {
	f.Add([]byte(`{"started":true}`), true)
	f.Add([]byte(`{"error":{"code":"x"}}`), false)
	f.Fuzz(func(t *testing.T, in []byte, system bool) { Wait(bytes.NewReader(in), system) })
}

func FuzzAcks(f *testing.F) {
	var r requests
	r.up("lo", 0)
	f.Add(r.buf)
	f.Fuzz(func(t *testing.T, in []byte) {
		if n, _ := r.acks(in); n > len(in)/20 {
			t.Errorf("%d acknowledgements in %d bytes", n, len(in))
		}
	})
}
