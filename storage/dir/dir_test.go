package dir

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/fsmount"
	"github.com/cleave-project/cleave/storage/storagetest"
)

func TestMain(m *testing.M) { storagetest.Main(m, Open) }

// disks is the driver on a file system without project quotas.
func disks(t testing.TB) storagetest.Target {
	return storagetest.Target{Open: Open, GrowsInUse: hasSysResource(t)}
}

// hasSysResource: ext4 grows while mounted only for those who may also
// ignore quotas.
func hasSysResource(t testing.TB) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestPoolOfDisks(t *testing.T) { storagetest.Run(t, disks(t)) }

func ext4WithProjects(t testing.TB) string {
	return filepath.Join(storagetest.Disk(t, 2*api.GiB, "ext4",
		[]string{"mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"},
		fsmount.Option{Key: "prjquota"}), "pool")
}

func xfsWithProjects(t testing.TB) string {
	return filepath.Join(storagetest.Disk(t, 2*api.GiB, "xfs", []string{"mkfs.xfs", "-q", "-s", "size=4096"},
		fsmount.Option{Key: "prjquota"}), "pool")
}

func TestPoolWithProjectQuotasOnExt4(t *testing.T) {
	storagetest.Run(t, storagetest.Target{Open: Open, Source: ext4WithProjects, Shrinks: true, GrowsInUse: true})
}

func TestPoolWithProjectQuotasOnXFS(t *testing.T) {
	storagetest.Run(t, storagetest.Target{Open: Open, Source: xfsWithProjects, Shrinks: true, GrowsInUse: true})
}

func BenchmarkCreateDelete(b *testing.B) {
	b.Run("disks", func(b *testing.B) {
		storagetest.BenchmarkCreateDelete(b, disks(b), 32*api.MiB, 10, 1000)
	})
	b.Run("projects", func(b *testing.B) {
		target := storagetest.Target{Open: Open, Source: ext4WithProjects}
		storagetest.BenchmarkCreateDelete(b, target, api.GiB, 10, 1000)
	})
}
