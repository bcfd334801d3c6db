package vitals

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cleave-project/cleave/api"
)

// memory is a control disk in memory.
type memory []byte

func (m memory) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, at)
}

func (m memory) WriteAt(p []byte, at int64) (int, error) {
	if at+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[at:], p), nil
}

func newDisk(t testing.TB, b *Boot) memory {
	t.Helper()
	m := make(memory, Size)
	if err := WriteBoot(m, b); err != nil {
		t.Fatal(err)
	}
	return m
}

var ignoreCause = cmpopts.IgnoreUnexported(api.Error{})

func TestBootIsReadAsWritten(t *testing.T) {
	want := &Boot{
		Hostname: "web", System: true, Hosts: "127.0.0.1 localhost\n",
		Process: Process{Args: []string{"/bin/sh", "-c", "echo \x01\u2028"}, Env: []string{"A=b"}, TTY: true},
		NICs: []NIC{{
			Name: "eth0", MAC: "02:00:00:00:00:01", MTU: 1400,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateways: []netip.Addr{netip.MustParseAddr("fd00::1")},
		}},
		Limits: []Rlimit{{7, 1024, 1<<64 - 1}}, DropCaps: 1 << 40,
	}
	m := newDisk(t, want)
	got, err := ReadBoot(m)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" {
		t.Error(d)
	}
	if s, err := ReadStatus(m); err != nil || s.Phase != PhaseBooting || s.Boots != 0 {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestBootThatDoesNotFitIsRefused(t *testing.T) {
	b := &Boot{Process: Process{Env: []string{"X=" + strings.Repeat("x", Size)}}}
	if err := WriteBoot(make(memory, Size), b); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
}

// A write that was cut at any byte leaves the status before it, or the new one.
func TestTornStatusLeavesTheOneBefore(t *testing.T) {
	m := newDisk(t, &Boot{})
	for boots := 1; boots < 6; boots++ {
		old, want := bytes.Clone(m), Status{Phase: PhaseRunning, Boots: boots}
		if err := WriteStatus(m, &want); err != nil {
			t.Fatal(err)
		}
		for cut := range StatusSize + 1 {
			torn := append(bytes.Clone(m[:cut]), old[cut:StatusSize]...)
			got, err := ReadStatus(memory(torn))
			if err != nil || got.Boots != boots && got.Boots != boots-1 {
				t.Fatalf("cut at %d: %+v, %v", cut, got, err)
			}
		}
		if got, err := ReadStatus(m); err != nil || got != want {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
}

func TestDamageIsSeen(t *testing.T) {
	m := newDisk(t, &Boot{Hostname: "web"})
	for _, at := range []int{0, 8, 12, 24, 40} {
		c := memory(bytes.Clone(m))
		c[at] ^= 1
		if _, err := ReadStatus(c); err == nil {
			t.Errorf("byte %d of the status: no error", at)
		}
		c[StatusSize+at] ^= 1
		if _, err := ReadBoot(c); err == nil {
			t.Errorf("byte %d of the boot text: no error", at)
		}
	}
	for _, size := range []int{0, 10, StatusSize - 1} {
		if _, err := ReadStatus(m[:min(size, 20)]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if _, err := ReadBoot(m[:size]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestLongErrorOfAStatusIsShortened(t *testing.T) {
	m := newDisk(t, &Boot{})
	long := strings.Repeat("long ", 10_000) + "\x1b[31m"
	want := Status{Phase: PhaseEnded, Exit: api.ExitStatus{Code: 127, Reason: "exit"}, Error: api.Errorf(api.CodeNotFound, "%s", long).WithHint("%s", long).WithField(api.FieldCommand)}
	if err := WriteStatus(m, &want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadStatus(m)
	if err != nil || got.Exit != want.Exit || got.Error.Code != want.Error.Code || got.Error.Field != want.Error.Field || !strings.HasPrefix(got.Error.Message, "long long ") {
		t.Errorf("got %+v, %v", got, err)
	}
	if len(want.Error.Message) != len(long) {
		t.Error("the caller's error was changed")
	}
}

// A guest writes what it likes, with a check sum.
func TestLiesOfAStatusAreBounded(t *testing.T) {
	for text, want := range map[string]Status{
		`{"phase":"flying","boots":-5,"exit":{"code":7000,"signal":"rm -rf /","reason":"miracle"}}`: {Phase: PhaseBooting, Exit: api.ExitStatus{Code: -1}},
		`{"phase":"ended","boots":1000000000}`:                                                      {Phase: PhaseEnded, Boots: maxBoots},
		`{"phase":"ended","exit":{"code":139,"signal":"SIGSEGV","reason":"exit"}}`:                  {Phase: PhaseEnded, Exit: api.ExitStatus{Code: 139, Signal: "SIGSEGV", Reason: "exit"}},
		`{"phase":"ended","exit":{"code":1,"signal":"SIGRTMIN+3","reason":"killed"}}`:               {Phase: PhaseEnded, Exit: api.ExitStatus{Code: 1, Signal: "SIGRTMIN+3"}},
		`{"phase":"ended","error":{"code":"nonsense","detail":"a\u001b[2Jb\nc"}}`:                   {Phase: PhaseEnded, Error: &api.Error{Code: api.CodeInternal, Message: "a\ufffd[2Jb\ufffdc"}},
		`{"phase":"running","boots":2,"unknown":[[[[1]]]],"exit":{"reason":"panic"}}`:               {Phase: PhaseRunning, Boots: 2, Exit: api.ExitStatus{Reason: "panic"}},
	} {
		m := make(memory, Size)
		copy(m[slotSize:], frame(statusMagic, 1<<63, []byte(text)))
		got, err := ReadStatus(m)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if d := cmp.Diff(want, got, ignoreCause); d != "" {
			t.Errorf("%s: %s", text, d)
		}
	}
}

func FuzzReadStatus(f *testing.F) {
	f.Add([]byte(`{"phase":"ended","boots":1,"exit":{"code":1}}`), true)
	f.Add(frame(statusMagic, 3, []byte(`{}`)), false)
	f.Fuzz(func(t *testing.T, b []byte, framed bool) {
		if framed {
			b = frame(statusMagic, 1, b)
		}
		m := make(memory, StatusSize)
		copy(m, b)
		s, err := ReadStatus(m)
		if err != nil {
			return
		}
		if s.Exit.Code < -1 || s.Exit.Code > 255 || s.Boots < 0 || s.Error != nil && (!utf8.ValidString(s.Error.Message) || len(s.Error.Message) > 4*maxText) {
			t.Errorf("%+v", s)
		}
	})
}

func FuzzReadBoot(f *testing.F) {
	f.Add([]byte(`{"hostname":"a","process":{"args":["x"]},"nics":[{"prefixes":["10.0.0.1/24"]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := make(memory, Size)
		copy(m[StatusSize:], frame(bootMagic, 0, b))
		_, _ = ReadBoot(m)
	})
}
