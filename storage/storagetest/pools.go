package storagetest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

func testRestart(t *testing.T, target Target) {
	c := place(t, target)
	sizes := map[string]api.Bytes{"small": size, "large": 2 * size, "unlimited": 0}
	d := open(t, target, c)
	for id, size := range sizes {
		writeFile(t, filepath.Join(create(t, d, id, size), "file"), id)
	}
	for _, end := range []struct {
		name string
		end  func() error
	}{
		{"Close", d.Close},
		{"Unmount", func() error { return d.Unmount(t.Context()) }},
	} {
		if err := end.end(); err != nil {
			t.Fatalf("%s: %v", end.name, err)
		}
		wantCode(t, "call after "+end.name, d.Create(t.Context(), "late", size), api.CodeUnavailable)
		d = open(t, target, c)
		ids, err := d.List(t.Context())
		if diff := cmp.Diff([]string{"large", "small", "unlimited"}, ids); diff != "" || err != nil {
			t.Errorf("list after %s (%v) (-want +got):\n%s", end.name, err, diff)
		}
		for id, size := range sizes {
			wantFile(t, filepath.Join(create(t, d, id, size), "file"), id)
			if _, has, err := d.Usage(t.Context(), id); err != nil || has != size {
				t.Errorf("size of %s after %s is %v (%v), want %v", id, end.name, has, err, size)
			}
		}
	}
}

func testRestartWithGuest(t *testing.T, target Target) {
	c := place(t, target)
	d := open(t, target, c)
	g := NewGuest(t, create(t, d, "vol", size))
	g.MustRun(t, "echo before > before")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	g.MustRun(t, "echo between > between")
	d = open(t, target, c)
	// Also with the daemon's own mount gone the guest's is the same.
	for range 2 {
		path := create(t, d, "vol", size)
		g.MustRun(t, "echo again > again")
		for _, word := range []string{"before", "between", "again"} {
			wantFile(t, filepath.Join(path, word), word+"\n")
		}
		if err := d.Release(t.Context(), "vol"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = open(t, target, c)
	path := create(t, d, "vol", size)
	g.MustRun(t, "echo last > last")
	wantFile(t, filepath.Join(path, "last"), "last\n")
	g.Close()
}

func testSecondDaemon(t *testing.T, target Target) {
	c := place(t, target)
	d := open(t, target, c)
	path := create(t, d, "vol", size)
	_, err := target.Open(t.Context(), c)
	wantCode(t, "second open", err, api.CodeBusy)
	writeFile(t, filepath.Join(path, "file"), "unharmed")
}

func testDestroy(t *testing.T, target Target) {
	c := place(t, target)
	d := open(t, target, c)
	path := create(t, d, "vol", size)
	wantCode(t, "destroy with a volume", d.Destroy(t.Context()), api.CodeInUse)
	writeFile(t, filepath.Join(path, "file"), "unharmed")
	if err := d.Release(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), "vol"); err != nil {
		t.Fatal(err)
	}
	if err := d.Destroy(t.Context()); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	for _, dir := range []string{c.Source, c.Run} {
		if left, err := os.ReadDir(dir); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
			t.Errorf("%s holds %v (%v) after destroy, want nothing", dir, left, err)
		}
	}
	checkLeaks(t, c)
	if ids, err := open(t, target, c).List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("pool made again holds %v (%v), want nothing", ids, err)
	}
}

// testFullDisk fills the disk below a pool from outside: what a limited
// volume has was promised to it.
func testFullDisk(t *testing.T, target Target) {
	target.Source = func(t testing.TB) string { return Tmpfs(t, 800*api.MiB) }
	c := place(t, target)
	d := open(t, target, c)
	g := NewGuest(t, create(t, d, "vol", size))
	g.MustRun(t, "echo before > before; sync -f .")
	free := Fill(t, c.Source)
	g.MustRun(t, "dd if=/dev/zero of=f bs=1M count=45 conv=fsync")
	g.FillUp(t, "rest")
	g.MustRun(t, "rm f rest; sync -f .; dd if=/dev/zero of=f bs=1M count=45 conv=fsync; cat before")
	if err := d.Create(t.Context(), "next", size); err != nil {
		wantCode(t, "create on a full disk", err, api.CodeNoSpace)
	}
	free()
	create(t, d, "next", size)
	g.Close()
}

func testNoRoom(t *testing.T, target Target) {
	target.Source = func(t testing.TB) string { return Tmpfs(t, 64*api.MiB) }
	c := place(t, target)
	free := Fill(t, c.Source)
	d, err := target.Open(t.Context(), c)
	if err == nil {
		err = d.Create(t.Context(), "vol", size)
		if err := d.Unmount(t.Context()); err != nil {
			t.Error(err)
		}
	}
	wantCode(t, "volume on a full disk", err, api.CodeNoSpace)
	free()
	left, err := filepath.Glob(filepath.Join(c.Source, "pool.btrfs*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left %v (%v)", left, err)
	}
}
