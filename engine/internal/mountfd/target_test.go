package mountfd

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTargetStaysInsideAndMakesWhatIsMissing(t *testing.T) {
	for _, c := range []struct {
		name string
		dir  bool
		want string // below the root; empty for an error
	}{
		{"/a/b", true, "a/b"},
		{"/new/x/y", true, "new/x/y"},
		{"/a/file", false, "a/file"},
		{"/", true, "."},
		{"/../../../a", true, "a"},
		{"/a/../../../a/b", true, "a/b"},
		{"a//b/.", true, "a/b"},
		{"/up/a/b", true, "a/b"},
		{"/abs/f", false, "a/f"},
		{"/dangling/x", true, "not/there/x"},
		{"/danglingfile", false, "not/here"},
		{"/a/rel/z", true, "c/z"},
		{"/loop", true, ""},
		{"/loop/x", true, ""},
		{"/f/x", true, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			root := filepath.Join(base, "root")
			for _, d := range []string{"a/b", "c"} {
				if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(root, "f"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			for name, to := range map[string]string{
				"up": "../../../..", "abs": "/a", "dangling": "/not/there", "danglingfile": "not/here",
				"a/rel": "../../c", "loop": "loop2", "loop2": "loop",
			} {
				if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
					t.Fatal(err)
				}
			}
			r, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			f, err := Target(r, c.name, c.dir)
			if c.want == "" {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.Lstat(filepath.Join(root, c.want))
			if err != nil || !os.SameFile(got, want) || got.IsDir() != c.dir {
				t.Errorf("another place than %s: %v", c.want, err)
			}
			if es, _ := os.ReadDir(base); len(es) != 1 {
				t.Errorf("something was made outside: %v", es)
			}
		})
	}
}

func TestMountErrorSaysWhatTheKernelSays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may configure a file system")
	}
	_, err := New("overlay").String("lowerdir", "/nowhere/at/all").String("no_such_option", "x").Mount(0)
	if err == nil || !strings.Contains(err.Error(), "overlay: set") {
		t.Errorf("error %v", err)
	}
	if _, err := New("nofs").Mount(0); !errors.Is(err, unix.ENODEV) {
		t.Errorf("error %v", err)
	}
}

func FuzzTarget(f *testing.F) {
	f.Add("/a/../b", "../x", true)
	f.Add("/l/l/x", "/l", false)
	f.Fuzz(func(t *testing.T, name, link string, dir bool) {
		if len(name) > 200 || len(link) > 200 {
			return
		}
		base := t.TempDir()
		root := filepath.Join(base, "root")
		if err := os.MkdirAll(filepath.Join(root, "a"), 0o755); err != nil {
			t.Fatal(err)
		}
		os.Symlink(link, filepath.Join(root, "l"))
		r, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if m, err := Target(r, name, dir); err == nil {
			to, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(m.Fd())))
			if err != nil || to != root && !strings.HasPrefix(to, root+"/") {
				t.Errorf("%q is at %q, error %v", name, to, err)
			}
			m.Close()
		}
		if es, _ := os.ReadDir(base); len(es) != 1 {
			t.Errorf("something was made outside: %v", es)
		}
	})
}
