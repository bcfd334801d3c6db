package btrfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/storage/storagetest"
)

var target = storagetest.Target{Open: Open, Shrinks: true, GrowsInUse: true}

func TestMain(m *testing.M) { storagetest.Main(m, Open) }

func TestPoolInLoopFile(t *testing.T) { storagetest.Run(t, target) }

// existingBtrfs is a file system that the host had before.
func existingBtrfs(t testing.TB) string {
	dir := storagetest.Disk(t, 2*api.GiB, "btrfs", []string{"mkfs.btrfs", "-q"})
	return filepath.Join(dir, "some/where")
}

func TestPoolOnExistingBtrfs(t *testing.T) {
	native := target
	native.Source = existingBtrfs
	storagetest.Run(t, native)
}

func TestPoolOnExistingBtrfsWithSimpleQuotas(t *testing.T) {
	native := target
	native.Source = func(t testing.TB) string {
		source := existingBtrfs(t)
		dir, err := os.Open(filepath.Dir(filepath.Dir(source)))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := enableQuota(dir, quotaEnableSimple); err != nil {
			t.Skipf("this kernel has no simple quotas (Linux 6.7): %v", err)
		}
		return source
	}
	storagetest.Run(t, native)
}

func BenchmarkCreateDelete(b *testing.B) {
	for name, source := range map[string]func(testing.TB) string{"loopfile": nil, "existing": existingBtrfs} {
		b.Run(name, func(b *testing.B) {
			t := target
			t.Source = source
			storagetest.BenchmarkCreateDelete(b, t, api.GiB, 10, 1000)
		})
	}
}

// openPool opens a pool for one test, on a disk of the size, or on the
// host's if that is 0.
func openPool(t *testing.T, disk, size api.Bytes) (*pool, storage.Config) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("pools need root: mounts, quotas and files of many owners")
	}
	c := storage.Config{Name: "pool", Source: t.TempDir(), Run: t.TempDir(), Size: size}
	if disk > 0 {
		c.Source = storagetest.Tmpfs(t, disk)
	}
	return reopen(t, c), c
}

func reopen(t *testing.T, c storage.Config) *pool {
	t.Helper()
	d, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(t.Context()); err != nil && !api.IsCode(err, api.CodeUnavailable) {
			t.Error(err)
		}
	})
	return d.(*pool)
}

func create(t *testing.T, p *pool, id string, size api.Bytes) string {
	t.Helper()
	if err := p.Create(t.Context(), id, size); err != nil {
		t.Fatal(err)
	}
	path, err := p.Path(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
