package btrfs

import (
	"os/exec"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/storage/storagetest"
)

func storagetestConfig(t *testing.T) storage.Config {
	return storage.Config{Name: "pool", Source: storagetest.Tmpfs(t, 2*api.GiB), Run: t.TempDir()}
}

// A guest may make subvolumes in a volume that it has mounted. They count,
// and don't keep the volume from being deleted.
func TestSubvolumesOfGuestCountAndGo(t *testing.T) {
	if _, err := exec.LookPath("btrfs"); err != nil {
		t.Skipf("this test makes subvolumes with btrfs-progs: %v", err)
	}
	p, _ := openPool(t, 2*api.GiB, 0)
	if p.quota.mode != "squota" {
		t.Skip("this kernel has no simple quotas (Linux 6.7)")
	}
	const size = 64 * api.MiB
	g := storagetest.NewGuest(t, create(t, p, "vol", size))
	g.MustRun(t, `mkdir a; btrfs subvolume create a/b; btrfs subvolume create a/b/c; btrfs subvolume create a/b/c/d
		btrfs subvolume create e; btrfs subvolume snapshot e f`)
	g.FillUp(t, "a/b/c/d/file")
	if used, _, err := p.Usage(t.Context(), "vol"); err != nil || used < size*3/4 || used > size {
		t.Errorf("used are %v (%v), want about %v", used, err, size)
	}
	g.Close()
	if err := p.Delete(t.Context(), "vol"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if ids, err := p.List(t.Context()); err != nil || len(ids) > 0 {
		t.Errorf("list is %v (%v), want nothing", ids, err)
	}
}

func TestGroupsOfDeletedVolumesGo(t *testing.T) {
	p, c := openPool(t, 2*api.GiB, 0)
	for _, id := range []string{"a", "b", "c", "d"} {
		create(t, p, id, api.GiB)
	}
	for _, id := range []string{"a", "b", "c"} {
		if err := p.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	// Mounting finishes what the kernel's cleaner has not come to.
	if err := p.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		p = reopen(t, c)
		if err := syncFS(p.dir); err != nil {
			t.Fatal(err)
		}
		if err := p.Unmount(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p = reopen(t, c)
	if left, err := p.quota.left(); err != nil || len(left) != 1 {
		t.Errorf("groups of subvolumes %v (%v) are left, want that of one", left, err)
	}
}
