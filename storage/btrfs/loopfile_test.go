package btrfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/storagetest"
)

func fileSize(t *testing.T, path string) (size, blocks api.Bytes) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return api.Bytes(st.Size), api.Bytes(st.Blocks) * 512
}

func TestLoopFileGrowsAheadOfGuest(t *testing.T) {
	p, c := openPool(t, 4*api.GiB, 0)
	file := filepath.Join(c.Source, fileName)
	before, _ := fileSize(t, file)
	g := storagetest.NewGuest(t, create(t, p, "vol", 0))
	const megabytes = 1500
	g.MustRun(t, fmt.Sprintf("dd if=/dev/zero of=f bs=1M count=%d conv=fsync", megabytes))
	size, blocks := fileSize(t, file)
	if size < megabytes*api.MiB || before > api.GiB {
		t.Errorf("file was %v and is %v after a guest wrote %d MiB", before, size, megabytes)
	}
	g.MustRun(t, "rm f; sync -f .")
	if _, after := fileSize(t, file); after < size || blocks < size {
		t.Errorf("of a file of %v, %v are reserved, and %v when the guest has deleted its files; want all", size, blocks, after)
	}
	g.Close()
}

func TestLoopFileStopsGrowingAtItsSize(t *testing.T) {
	const most = 400 * api.MiB
	p, c := openPool(t, 4*api.GiB, most)
	full, other := create(t, p, "full", 0), create(t, p, "other", 0)
	g, h := storagetest.NewGuest(t, full), storagetest.NewGuest(t, other)
	h.MustRun(t, "echo kept > kept")
	g.FillUp(t, "f")
	if size, _ := fileSize(t, filepath.Join(c.Source, fileName)); size > most {
		t.Errorf("file is %v, want at most %v", size, most)
	}
	status, err := p.Status(t.Context())
	if err != nil || status.State != "ready" || status.Total != most {
		t.Errorf("status of a full pool is %+v (%v), want it ready with a total of %v", status, err, most)
	}
	g.Close()
	if err := p.Delete(t.Context(), "full"); err != nil {
		t.Fatalf("delete from a full pool: %v", err)
	}
	// The kernel frees it in its own time, and on a full disk writers wait.
	if err := syncFS(p.dir); err != nil {
		t.Fatal(err)
	}
	h.MustRun(t, "cat kept; dd if=/dev/zero of=f bs=1M count=20 conv=fsync")
	h.Close()
}

func TestLoopFileGrowsLaterWhenDiskWasFull(t *testing.T) {
	p, c := openPool(t, 2*api.GiB, 0)
	free := storagetest.Fill(t, c.Source)
	before, _ := fileSize(t, filepath.Join(c.Source, fileName))
	g := storagetest.NewGuest(t, create(t, p, "vol", 0))
	g.FillUp(t, "f")
	if after, _ := fileSize(t, filepath.Join(c.Source, fileName)); after != before {
		t.Errorf("file grew from %v to %v on a full disk", before, after)
	}
	free()
	if _, err := p.file.grow(); err != nil {
		t.Errorf("grow: %v", err)
	}
	g.MustRun(t, "dd if=/dev/zero of=g bs=1M count=200 conv=fsync")
	g.Close()
}

func TestOpenFinishesGrowthCutShort(t *testing.T) {
	p, c := openPool(t, 4*api.GiB, 0)
	before, _, err := deviceUse(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(c.Source, fileName), int64(before)+512<<20); err != nil {
		t.Fatal(err)
	}
	p = reopen(t, c)
	after, _, err := deviceUse(p.dir)
	if err != nil || after != before+512<<20 {
		t.Errorf("file system grew from %d to %d bytes (%v), want %d more", before, after, err, 512<<20)
	}
	if size, blocks := fileSize(t, filepath.Join(c.Source, fileName)); blocks < size {
		t.Errorf("of a file of %v only %v are reserved", size, blocks)
	}
}

func TestOpenLeavesCorruptFileAlone(t *testing.T) {
	p, c := openPool(t, 2*api.GiB, 0)
	if err := p.Unmount(t.Context()); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(c.Source, fileName)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	junk := bytes.Repeat([]byte("junk"), 1<<18)
	if _, err := f.WriteAt(junk, 0); err != nil { // the first superblock is at 64 KiB
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c); !api.IsCode(err, api.CodeCorrupt) {
		t.Errorf("open: got %v, want an error of code corrupt", err)
	}
	got := make([]byte, len(junk))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, junk) {
		t.Errorf("open changed the file (%v)", err)
	}
}

func TestOpenMakesHalfFormattedFileAgain(t *testing.T) {
	c := storagetestConfig(t)
	half := filepath.Join(c.Source, "pool.btrfs.new-123")
	if err := os.WriteFile(half, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	create(t, reopen(t, c), "vol", 0)
	if _, err := os.Lstat(half); err == nil {
		t.Errorf("%s is still there", half)
	}
}

func TestOpenRefusesMountOfAnotherFile(t *testing.T) {
	p, c := openPool(t, 2*api.GiB, 0)
	path := create(t, p, "vol", 0)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(filepath.Join(c.Run, c.Name), 0) })
	other := c
	other.Source = t.TempDir()
	if _, err := Open(t.Context(), other); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("open: got %v, want an error of code conflict", err)
	}
	if left, err := filepath.Glob(filepath.Join(other.Source, "*.btrfs*")); err != nil || len(left) > 0 {
		t.Errorf("open made %v (%v)", left, err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the mounted pool has suffered: %v", err)
	}
}

func TestOpenRefusesTooSmallPool(t *testing.T) {
	c := storagetestConfig(t)
	c.Size = 100 * api.MiB
	if _, err := Open(t.Context(), c); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("open: got %v, want an error of code invalid", err)
	}
}
