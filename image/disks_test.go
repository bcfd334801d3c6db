package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/disk"
)

// rawDisk is a disk of 24 MiB with a boot sector, mostly holes.
func rawDisk(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 24<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(b[:100<<10])
	_, _ = rand.NewChaCha8([32]byte{3}).Read(b[20<<20 : 21<<20])
	copy(b[446:510], make([]byte, 64))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func save(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// converted is a file of another format with that disk in it.
func converted(t testing.TB, raw []byte, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is missing; install qemu-utils")
	}
	out := filepath.Join(t.TempDir(), "converted")
	args = append(append([]string{"convert", "-f", "raw", "-O"}, args...), save(t, raw), out)
	if b, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func importDisk(t testing.TB, s *Store, name string, b []byte) *api.Image {
	t.Helper()
	img, err := s.Import(t.Context(), bytes.NewReader(b), name, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// leftovers are files of the store beside names, lock and empty directories.
func leftovers(t testing.TB, s *Store) (all []string) {
	t.Helper()
	for _, dir := range []string{dirTmp, dirDisks, dirImages, dirRoots} {
		files, err := os.ReadDir(s.dir(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			all = append(all, dir+"/"+f.Name())
		}
	}
	return all
}

func TestImportFindsDisksByTheirContent(t *testing.T) {
	s := openStore(t)
	raw := rawDisk(t)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(raw); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	first := importDisk(t, s, "raw", raw)
	if first.Type != "disk" || first.DiskSize != 24<<20 || first.Firmware != "bios" || first.Size > 2<<20 || first.Size < 1<<20 {
		t.Errorf("image is %+v", first)
	}
	if b, err := os.ReadFile(s.Disk(first.Digest)); err != nil || !bytes.Equal(b, raw) {
		t.Errorf("the file differs: %v", err)
	}
	if s.EROFS(first.Digest) != "" {
		t.Error("a disk has no root")
	}
	for name, b := range map[string][]byte{
		"gz": packed.Bytes(), "qcow2": converted(t, raw, "qcow2", "-c"), "vmdk": converted(t, raw, "vmdk"),
		"vhd": converted(t, raw, "vpc", "-o", "subformat=fixed,force_size=on"),
	} {
		if img := importDisk(t, s, name, b); img.Digest != first.Digest {
			t.Errorf("%s: the same disk is another image: %+v", name, img)
		}
	}
	if left := leftovers(t, s); len(left) != 2 {
		t.Errorf("the store holds %v", left)
	}
	if img, err := s.Get(t.Context(), "vmdk"); err != nil || len(img.Names) != 5 {
		t.Errorf("%+v, %v", img, err)
	}
}

func TestDisksSurviveAndGo(t *testing.T) {
	s := openStore(t)
	img := importDisk(t, s, "d", rawDisk(t))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// What a crash left.
	for _, name := range []string{"tmp/disk-1", "disks/" + strings.Repeat("a", 64) + ".raw"} {
		if err := os.WriteFile(filepath.Join(s.opts.Dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(s.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if left := leftovers(t, s); len(left) != 2 {
		t.Errorf("the store holds %v", left)
	}
	if err := s.Delete(t.Context(), "d", map[string]bool{img.Digest: true}); !api.IsCode(err, api.CodeInUse) {
		t.Errorf("delete of what is used: %v", err)
	}
	if err := s.Untag(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if freed, digests, err := s.Collect(t.Context(), nil); err != nil || freed < 1<<20 || len(digests) != 1 {
		t.Errorf("collected %v, %v: %v", freed, digests, err)
	}
	if left := leftovers(t, s); len(left) != 0 || s.Disk(img.Digest) != "" {
		t.Errorf("the store holds %v", left)
	}
}

func TestDamagedDiskIsNotListed(t *testing.T) {
	s := openStore(t)
	img := importDisk(t, s, "d", rawDisk(t))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.Disk(img.Digest), 1<<20); err != nil {
		t.Fatal(err)
	}
	s, err := Open(s.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Get(t.Context(), "d"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestFailedImportOfADiskLeavesNothing(t *testing.T) {
	s := openStore(t, func(o *Options) { o.MaxDisk = 32 * api.MiB })
	raw := rawDisk(t)
	qcow := converted(t, raw, "qcow2")
	backed := bytes.Clone(qcow)
	backed[15] = 112 // offset of the backing file's name
	for name, tt := range map[string]struct {
		b    []byte
		name string
		code api.Code
		text string
	}{
		"cut off":   {qcow[:len(qcow)/2], "d", api.CodeCorrupt, "cut off"},
		"backed":    {backed, "d", api.CodeInvalid, "whole in itself"},
		"too large": {append(raw, make([]byte, 9<<20)...), "d", api.CodeInvalid, "more than"},
		"virtually": {converted(t, append(bytes.Clone(raw), make([]byte, 9<<20)...), "qcow2"), "d", api.CodeInvalid, "more than"},
		"no name":   {qcow, "", api.CodeInvalid, "name"},
		"bad name":  {qcow, "a@b", api.CodeInvalid, ""},
	} {
		_, err := s.Import(t.Context(), bytes.NewReader(tt.b), tt.name, "", nil)
		if !api.IsCode(err, tt.code) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
		if left := leftovers(t, s); len(left) != 0 {
			t.Errorf("%s: the store holds %v", name, left)
		}
	}
}

func TestBrokenStreamAndCancelLeaveNothing(t *testing.T) {
	s := openStore(t)
	raw := rawDisk(t)
	broken := io.MultiReader(bytes.NewReader(raw[:3<<20]), readerFunc(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }))
	if _, err := s.Import(t.Context(), broken, "d", "", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	for _, step := range []string{"reading", "converting"} {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := s.Import(ctx, bytes.NewReader(converted(t, raw, "qcow2", "-c")), "d", "", func(now string, _, _ int64) {
			if now == step {
				cancel()
			}
		})
		if !api.IsCode(err, api.CodeCancelled) {
			t.Errorf("cancelled while %s: %v", step, err)
		}
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("the store holds %v", left)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestFullDiskEndsAnImport(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("no tmpfs can be mounted: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s := openStore(t, func(o *Options) { o.Dir = filepath.Join(dir, "images") })
	b := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{4}).Read(b)
	b[510], b[511] = 0x55, 0xaa
	copy(b[446:510], make([]byte, 64))
	dense := bytes.Repeat([]byte("compresses well "), 20<<16)
	for _, b := range [][]byte{b, converted(t, dense, "qcow2", "-c")} {
		if _, err := s.Import(t.Context(), bytes.NewReader(b), "d", "", nil); !api.IsCode(err, api.CodeNoSpace) {
			t.Errorf("got %v", err)
		}
	}
	if left := leftovers(t, s); len(left) != 0 {
		t.Errorf("the store holds %v", left)
	}
}

func TestImportDiskFromFileAndOfAnything(t *testing.T) {
	s := openStore(t)
	b := append([]byte("no partition table"), make([]byte, 1<<20)...)
	f, err := os.Open(save(t, b))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := s.ImportDisk(t.Context(), f, "d", "", nil); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
	if _, err := s.ImportDisk(t.Context(), f, "d", "floppy", nil); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
	img, err := s.ImportDisk(t.Context(), f, "d", "raw", nil)
	if err != nil || img.DiskSize != api.Bytes(len(b)) {
		t.Fatalf("%+v: %v", img, err)
	}
	again, err := s.ImportDisk(t.Context(), bytes.NewReader(b), "d2", "raw", nil)
	if err != nil || again.Digest != img.Digest {
		t.Errorf("as a stream it is %+v: %v", again, err)
	}
}

func TestExportOfDisks(t *testing.T) {
	s := openStore(t)
	raw := rawDisk(t)
	img := importDisk(t, s, "d", raw)
	for _, format := range append(disk.ExportFormats, "") {
		var b bytes.Buffer
		if err := s.Export(t.Context(), "d", format, &b); err != nil {
			t.Fatal(err)
		}
		if again := importDisk(t, s, "again", b.Bytes()); again.Digest != img.Digest {
			t.Errorf("%q: it comes back as %+v", format, again)
		}
	}
	if err := s.Export(t.Context(), "d", "oci", io.Discard); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkImportDisk is beside a plain copy of the same bytes with fsync.
func BenchmarkImportDisk(b *testing.B) {
	data := make([]byte, 512<<20)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(data)
	copy(data[446:510], make([]byte, 64))
	data[510], data[511] = 0x55, 0xaa
	path := save(b, data)
	b.Run("cp", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for range b.N {
			to := filepath.Join(b.TempDir(), "copy")
			if out, err := exec.Command("sh", "-c", "cp "+path+" "+to+" && sync "+to).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
	for name, of := range map[string]func() io.Reader{
		"stream": func() io.Reader { return bytes.NewReader(data) },
		"file": func() io.Reader {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			return f
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for range b.N {
				b.StopTimer()
				s := openStore(b)
				b.StartTimer()
				if _, err := s.Import(b.Context(), of(), "d", "", nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
