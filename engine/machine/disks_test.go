package machine

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine/jail"
)

// small is a directory with room for size bytes.
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a file system of its own: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskThatDoesNotFitIsNotMadeByHalf(t *testing.T) {
	e := newEngine(t, &fake{pretend: []string{"phase=ended", "write"}})
	s := ofImage(t)
	s.Root.Dir = small(t, "64k")
	if _, err := e.Start(t.Context(), s); !api.IsCode(err, api.CodeNoSpace) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(s.Root.Dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, error %v", left, err)
	}
	// A disk is as large as it is, and takes what is written.
	s.Root.Dir = small(t, "16m")
	start(t, e, s)
	exit(t, e, s.ID)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.Root.Dir, engine.RootDisk), &st); err != nil || st.Size != int64(s.Root.Size) || st.Blocks*512 > 8<<20 {
		t.Errorf("%d bytes in %d blocks, error %v", st.Size, st.Blocks, err)
	}
}

func TestDiskIsNoLink(t *testing.T) {
	e := newEngine(t, &fake{pretend: []string{"phase=ended", "write"}})
	s := ofImage(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("host's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(s.Root.Dir, engine.RootDisk)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Start(t.Context(), s); err == nil {
		t.Error("a link is a disk")
	}
	var st unix.Stat_t
	if err := unix.Stat(secret, &st); err != nil || st.Uid != 0 {
		t.Errorf("the host's file belongs to %d, error %v", st.Uid, err)
	}
}

// TestADiskThatIsTheMonitorsIsLeftAsItIs: the time of its last change is what
// tells that nobody has changed it between two starts.
func TestADiskThatIsTheMonitorsIsLeftAsItIs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var times []syscall.Timespec
	for range 3 {
		f, err := openDisk(path, false, 1<<16)
		if err != nil {
			t.Skipf("needs to be root: %v", err)
		}
		st, err := f.Stat()
		f.Close()
		if err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 1<<16+jail.ID {
			t.Fatalf("%+v, %v", st, err)
		}
		times = append(times, st.Sys().(*syscall.Stat_t).Ctim)
		time.Sleep(20 * time.Millisecond) // a tick of the clock that times are of, and more
	}
	if times[0] != times[1] || times[1] != times[2] {
		t.Errorf("it was changed at %v", times)
	}
}

func TestOutputIsShownWithoutWhatATerminalObeys(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"one\r\ntwo\n\n":                   "one | two",
		"\x1b[2Jred \x07bell\u009b1m":      "[2Jred bell1m",
		"a\xff\xfeb":                       "a?b",
		string(make([]byte, 5*lastOutput)): "",
	} {
		if got := printable([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	long := make([]byte, 3*lastOutput)
	for i := range long {
		long[i] = 'x'
	}
	if n := len(printable(long)); n != lastOutput {
		t.Errorf("%d bytes", n)
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add([]byte("a\x1b[31mb\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out := printable(in)
		if len(out) > lastOutput {
			t.Errorf("%d bytes", len(out))
		}
		if !utf8.ValidString(out) {
			t.Errorf("%q is not UTF-8", out)
		}
		for _, r := range out {
			if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
				t.Errorf("%q holds %q", out, r)
			}
		}
	})
}

func TestDiskThatCanNotBeMadeSaysWhyAndTheWayOut(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		dir  string
		size api.Bytes
		code api.Code
		says string
	}{
		"too small":       {dir, api.MiB, api.CodeInvalid, "at least 8MiB"},
		"no room":         {small(t, "64k"), api.GiB, api.CodeNoSpace, "free some space in its pool"},
		"no such files":   {dir, 1 << 62, api.CodeInvalid, "no files as large"},
		"mkfs refuses it": {small(t, "1g"), 1 << 62, api.CodeInternal, "mkfs.ext4: exit status 1: "},
	} {
		path := filepath.Join(tt.dir, "disk")
		err := format(t.Context(), "root disk of web", path, tt.size, nil)
		e := api.AsError(err)
		if e == nil || e.Code != tt.code || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(e.Message, "make the root disk of web") ||
			e.Hint == "" || strings.ContainsAny(e.Message, "\n") || strings.Contains(e.Message, "mke2fs.conf") || strings.Contains(e.Message, tt.dir) {
			t.Errorf("%s: %v; %s", name, err, e.Hint)
		}
	}
}
