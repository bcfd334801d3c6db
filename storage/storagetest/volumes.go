package storagetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func testNewVolume(t *testing.T, target Target) {
	old := unix.Umask(0o077) // a daemon's umask must not show in volumes
	defer unix.Umask(old)
	d := open(t, target, place(t, target))
	for id, size := range map[string]api.Bytes{"limited": size, "unlimited": 0} {
		path := create(t, d, id, size)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if got, want := []uint32{st.Mode, st.Uid, st.Gid}, []uint32{unix.S_IFDIR | 0o755, 0, 0}; !slices.Equal(got, want) {
			t.Errorf("%s: mode, uid, gid are %o, want %o", id, got, want)
		}
		entries, err := os.ReadDir(path)
		if err != nil || len(entries) > 0 {
			t.Errorf("%s: holds %v (%v), want nothing", id, entries, err)
		}
		used, has, err := d.Usage(t.Context(), id)
		if err != nil || has != size || used > api.MiB {
			t.Errorf("%s: usage is %v of %v (%v), want about nothing of %v", id, used, has, err, size)
		}
	}
	status, err := d.Status(t.Context())
	if err != nil || status.State != "ready" || status.Volumes != 2 || status.Total == 0 || status.Quota == "" {
		t.Errorf("status is %+v (%v), want a ready pool with 2 volumes", status, err)
	}
}

func testIdempotent(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	writeFile(t, filepath.Join(create(t, d, "vol", size), "file"), "kept")
	wantFile(t, filepath.Join(create(t, d, "vol", size), "file"), "kept")
	wantCode(t, "create with another size", d.Create(t.Context(), "vol", 2*size), api.CodeExists)
	for range 2 {
		if err := d.Delete(t.Context(), "vol"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if ids, err := d.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("list is %v (%v), want nothing", ids, err)
	}
	entries, err := os.ReadDir(create(t, d, "vol", size))
	if err != nil || len(entries) > 0 {
		t.Errorf("volume made again holds %v (%v), want nothing", entries, err)
	}
	wantCode(t, "create of a negative size", d.Create(t.Context(), "less", -1), api.CodeInvalid)
}

func testInvalidIDs(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	for _, id := range []string{"", ".", "..", "a/b", "../a", "-a", ".new-a", "A", "a b", "a\n", "ä", strings.Repeat("a", 129)} {
		wantCode(t, fmt.Sprintf("create %q", id), d.Create(t.Context(), id, size), api.CodeInvalid)
		wantCode(t, fmt.Sprintf("delete %q", id), d.Delete(t.Context(), id), api.CodeInvalid)
		_, err := d.Path(t.Context(), id)
		wantCode(t, fmt.Sprintf("path of %q", id), err, api.CodeInvalid)
	}
}

func testMissing(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	_, err := d.Path(t.Context(), "none")
	wantCode(t, "path", err, api.CodeNotFound)
	_, _, err = d.Usage(t.Context(), "none")
	wantCode(t, "usage", err, api.CodeNotFound)
	wantCode(t, "resize", d.Resize(t.Context(), "none", size), api.CodeNotFound)
}

// testHostileTree deletes what a guest may have left: deep nesting, links
// out, odd names, files without permissions.
func testHostileTree(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	outside := filepath.Join(t.TempDir(), "outside")
	writeFile(t, outside, "untouched")
	for id, size := range map[string]api.Bytes{"limited": size, "unlimited": 0} {
		path := create(t, d, id, size)
		g := NewGuest(t, path)
		g.MustRun(t, fmt.Sprintf(`
			mkdir -p many; cd many; i=0; while [ $i -lt 3000 ]; do : > $i; i=$((i+1)); done; cd ..
			ln -s %s out; ln -s .. up; ln -s / root; mkfifo fifo; mkdir "$(printf 'a\nb')" locked; : > locked/f; chmod 0 locked`,
			filepath.Dir(outside)))
		g.Close()
		nest(t, path, 3000)
		if err := d.Release(t.Context(), id); err != nil {
			t.Errorf("release: %v", err)
		}
		if err := d.Delete(t.Context(), id); err != nil {
			t.Errorf("delete: %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there after delete", path)
		}
	}
	wantFile(t, outside, "untouched")
}

// nest makes directories in one another, with a file in each.
func nest(t *testing.T, path string, depth int) {
	t.Helper()
	at, err := unix.Open(path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := 0; err == nil && i < depth; i++ {
		below, file := -1, -1
		if err = unix.Mkdirat(at, "d", 0o755); err == nil {
			file, err = unix.Openat(at, "f", unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		}
		if err == nil {
			unix.Close(file)
			below, err = unix.Openat(at, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		unix.Close(at)
		at = below
	}
	if err != nil {
		t.Fatalf("nest directories: %v", err)
	}
	unix.Close(at)
}

func testConcurrent(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	const workers, rounds = 8, 5
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			own, shared := fmt.Sprintf("own-%d", w), fmt.Sprintf("shared-%d", w%2)
			for range rounds {
				if err := d.Create(t.Context(), own, size); err != nil {
					t.Errorf("create: %v", err)
				}
				path, err := d.Path(t.Context(), own)
				if err != nil {
					t.Errorf("path: %v", err)
				} else if err := os.WriteFile(filepath.Join(path, "f"), nil, 0o600); err != nil {
					t.Errorf("write: %v", err)
				}
				// Others delete these at any moment.
				if err := d.Create(t.Context(), shared, size); err != nil {
					t.Errorf("create shared: %v", err)
				}
				if _, err := d.Path(t.Context(), shared); err != nil && !api.IsCode(err, api.CodeNotFound) {
					t.Errorf("path of shared: %v", err)
				}
				for _, id := range []string{shared, own} {
					if err := d.Delete(t.Context(), id); err != nil {
						t.Errorf("delete: %v", err)
					}
				}
				if _, err := d.Status(t.Context()); err != nil {
					t.Errorf("status: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if ids, err := d.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("list is %v (%v), want nothing", ids, err)
	}
}

func testLimit(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	full, other := NewGuest(t, create(t, d, "full", size)), NewGuest(t, create(t, d, "other", size))
	full.FillUp(t, "f")
	used, has, err := d.Usage(t.Context(), "full")
	if err != nil || has != size || used < size*3/5 || used > size {
		t.Errorf("usage of full volume is %v of %v (%v), want at least three fifths", used, has, err)
	}
	other.MustRun(t, "dd if=/dev/zero of=f bs=1M count=30 conv=fsync")
	full.MustRun(t, "rm f; sync -f .; dd if=/dev/zero of=f bs=1M count=30 conv=fsync")
	full.Close()
	other.Close()
}

func testResize(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	path := create(t, d, "vol", size)
	g := NewGuest(t, path)
	g.FillUp(t, "f")
	if !target.GrowsInUse {
		wantCode(t, "grow in use", d.Resize(t.Context(), "vol", 2*size), api.CodeForbidden)
		g.Close()
		if err := d.Release(t.Context(), "vol"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Resize(t.Context(), "vol", 2*size); err != nil {
		t.Fatalf("grow: %v", err)
	}
	if !target.GrowsInUse {
		g = NewGuest(t, create(t, d, "vol", 2*size))
	}
	g.MustRun(t, fmt.Sprintf("dd if=/dev/zero of=more bs=1M count=%d conv=fsync", size/api.MiB-4))
	if used, has, err := d.Usage(t.Context(), "vol"); err != nil || has != 2*size || used < size {
		t.Errorf("usage after growing is %v of %v (%v), want more than %v of %v", used, has, err, size, 2*size)
	}
	if !target.Shrinks {
		wantCode(t, "shrink", d.Resize(t.Context(), "vol", size), api.CodeUnsupported)
		g.Close()
		return
	}
	wantCode(t, "shrink below use", d.Resize(t.Context(), "vol", size), api.CodeConflict)
	g.MustRun(t, "rm f more; sync -f .")
	if err := d.Resize(t.Context(), "vol", size/2); err != nil {
		t.Errorf("shrink: %v", err)
	}
	g.FillUp(t, "f")
	if used, has, err := d.Usage(t.Context(), "vol"); err != nil || has != size/2 || used > has {
		t.Errorf("usage after shrinking is %v of %v (%v), want no more than %v", used, has, err, size/2)
	}
	g.Close()
}

func testIDMap(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	for id, size := range map[string]api.Bytes{"limited": size, "unlimited": 0} {
		path := create(t, d, id, size)
		g := NewGuest(t, path)
		got := g.MustRun(t, "mkdir d; : > d/f; chown 33:44 d/f; stat -c %u:%g . d d/f")
		if diff := cmp.Diff("0:0\n0:0\n33:44", got); diff != "" {
			t.Errorf("%s: owners as the guest sees them (-want +got):\n%s", id, diff)
		}
		g.Close()
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(path, "d/f"), &st); err != nil || st.Uid != 33 || st.Gid != 44 {
			t.Errorf("%s: owner in the volume is %d:%d (%v), want 33:44", id, st.Uid, st.Gid, err)
		}
	}
}

func testOverlay(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	lower := t.TempDir()
	for _, name := range []string{"changed", "removed", "dir/sub/file"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(lower, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(lower, name), "lower\n")
	}
	for id, size := range map[string]api.Bytes{"limited": size, "unlimited": 0} {
		path := create(t, d, id, size)
		for _, name := range []string{"upper", "work"} {
			if err := os.Mkdir(filepath.Join(path, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		image, volume := NewGuest(t, lower), NewGuest(t, path)
		_, err := runInOverlay(image, volume, `
			echo more >> changed; rm removed; mv dir renamed; mkdir new; echo new > new/file
			rm -r renamed/sub; mkdir renamed/sub; chown 12:34 changed
			[ "$(cat changed)" = "lower
more" ]; [ ! -e removed ]; [ "$(ls renamed/sub)" = "" ]; [ "$(stat -c %u:%g changed)" = 12:34 ]`)
		if err != nil {
			t.Errorf("%s: guest in overlay: %v", id, err)
		}
		volume.Close()
		image.Close()
		wantFile(t, filepath.Join(path, "upper/changed"), "lower\nmore\n")
		wantFile(t, filepath.Join(path, "upper/new/file"), "new\n")
		wantFile(t, filepath.Join(lower, "changed"), "lower\n")
	}
}

func testXattrs(t *testing.T, target Target) {
	d := open(t, target, place(t, target))
	for id, size := range map[string]api.Bytes{"limited": size, "unlimited": 0} {
		file := filepath.Join(create(t, d, id, size), "f")
		writeFile(t, file, "")
		for _, name := range []string{"user.test", "trusted.test", "security.capability"} {
			// A capability set of revision 2 (include/uapi/linux/capability.h).
			value := append([]byte{0, 0, 0, 2, 1}, make([]byte, 15)...)
			if err := unix.Setxattr(file, name, value, 0); err != nil {
				t.Errorf("%s: set %s: %v", id, name, err)
				continue
			}
			got := make([]byte, 100)
			n, err := unix.Getxattr(file, name, got)
			if err != nil || !slices.Equal(got[:n], value) {
				t.Errorf("%s: %s is %q (%v), want %q", id, name, got[:max(n, 0)], err, value)
			}
		}
	}
}
