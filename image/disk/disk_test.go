package disk

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func qemu(t *testing.T, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is missing; install qemu-utils")
	}
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// rawDisk makes a disk with a partition table's signature, data here and
// there, and an odd number of sectors.
func rawDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 300<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	b[446+4] = 0 // no partitions
	copy(b[446:510], make([]byte, 64))
	b[510], b[511] = 0x55, 0xaa
	for _, at := range []int64{0, 5<<20 + 512, 39<<20 - 300<<10 + 512} {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func open(t *testing.T, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

// convert imports a file as the store does.
func convert(t *testing.T, path, format string) (Header, string, error) {
	t.Helper()
	f, size := open(t, path)
	h, err := Check(t.Context(), f, size, format)
	if err != nil {
		return h, "", err
	}
	out := filepath.Join(t.TempDir(), "out.raw")
	dst, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if h.Raw() {
		_, err = io.Copy(dst, io.NewSectionReader(f, h.Offset, h.Length))
		return h, out, err
	}
	last := 0.0
	err = Convert(t.Context(), dst, f, h, t.TempDir(), func(p float64) { last = p })
	if err == nil && last != 100 {
		t.Errorf("progress ended at %v", last)
	}
	return h, out, err
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s (%d bytes) and %s (%d bytes) differ", a, len(x), b, len(y))
	}
}

func TestEveryFormatBecomesTheSameRawDisk(t *testing.T) {
	raw := rawDisk(t)
	for _, tt := range []struct {
		name, format string
		create       []string
	}{
		{"raw", "raw", []string{"-O", "raw"}},
		{"qcow2", "qcow2", []string{"-O", "qcow2"}},
		{"qcow2 compressed", "qcow2", []string{"-O", "qcow2", "-c"}},
		{"qcow2 zstd, subclusters", "qcow2", []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}},
		{"qcow2 extended tables", "qcow2", []string{"-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"}},
		{"qcow2 version 2", "qcow2", []string{"-O", "qcow2", "-o", "compat=0.10"}},
		{"vmdk sparse", "vmdk", []string{"-O", "vmdk"}},
		{"vmdk stream", "vmdk", []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
		{"vhdx", "vhdx", []string{"-O", "vhdx"}},
		{"vhdx fixed", "vhdx", []string{"-O", "vhdx", "-o", "subformat=fixed"}},
		{"vhd dynamic", "vpc", []string{"-O", "vpc", "-o", "force_size=on"}},
		{"vhd fixed", "raw", []string{"-O", "vpc", "-o", "subformat=fixed,force_size=on"}},
		{"vdi", "vdi", []string{"-O", "vdi"}},
		{"vdi fixed", "vdi", []string{"-O", "vdi", "-o", "static=on"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "disk")
			qemu(t, append(append([]string{"convert", "-f", "raw"}, tt.create...), raw, file)...)
			h, out, err := convert(t, file, "")
			if err != nil {
				t.Fatal(err)
			}
			if h.Format != tt.format || h.Size != 39<<20+512 {
				t.Errorf("header is %+v", h)
			}
			sameFiles(t, raw, out)
		})
	}
}

func TestExportsAreReadByOthersAndUs(t *testing.T) {
	raw := rawDisk(t)
	for _, format := range ExportFormats {
		t.Run(format, func(t *testing.T) {
			f, _ := open(t, raw)
			file := filepath.Join(t.TempDir(), "export")
			w, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			m := Machine{Name: `we<b>/"x"`, CPUs: 2, Memory: 512 << 20, Firmware: "uefi"}
			if err := Export(t.Context(), f, m, format, t.TempDir(), w); err != nil {
				t.Fatal(err)
			}
			w.Close()
			if format == "qcow2" {
				qemu(t, "check", "-f", "qcow2", file)
				qemu(t, "compare", "-f", "raw", "-F", "qcow2", raw, file)
			}
			h, out, err := convert(t, file, "")
			if err != nil {
				t.Fatal(err)
			}
			if format == "ova" && (h.Format != "vmdk" || h.Firmware != "uefi") {
				t.Errorf("header is %+v", h)
			}
			sameFiles(t, raw, out)
		})
	}
}

func TestExportOfEmptyAndLargeSparseDisks(t *testing.T) {
	for _, size := range []int64{512, 64 << 10, 3<<40 + 512, 1 << 40} {
		path := filepath.Join(t.TempDir(), "raw")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("end"), size-3); err != nil {
			t.Fatal(err)
		}
		for _, format := range []string{"qcow2", "ova"} {
			file := filepath.Join(t.TempDir(), format)
			w, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			err = Export(t.Context(), f, Machine{Name: "x"}, format, t.TempDir(), w)
			w.Close()
			if format == "ova" && size > 2<<40 {
				if !api.IsCode(err, api.CodeUnsupported) {
					t.Errorf("got %v", err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if format == "qcow2" {
				qemu(t, "check", "-f", "qcow2", file)
				qemu(t, "compare", "-f", "raw", "-F", "qcow2", path, file)
			}
			r, n := open(t, file)
			if h, err := Check(t.Context(), r, n, ""); err != nil || h.Size != size {
				t.Errorf("%s of %d: %+v, %v", format, size, h, err)
			}
		}
	}
}

func TestImagesThatNeedOtherFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	raw := rawDisk(t)
	for name, args := range map[string][]string{
		"backing":   {"create", "-f", "qcow2", "-b", raw, "-F", "raw", "backing"},
		"data-file": {"create", "-f", "qcow2", "-o", "data_file=external", "data-file", "10M"},
		"flat":      {"create", "-f", "vmdk", "-o", "subformat=monolithicFlat", "flat", "10M"},
		"split":     {"create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "split", "10M"},
	} {
		qemu(t, args...)
		_, _, err := convert(t, name, "")
		if !api.IsCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "whole in itself") {
			t.Errorf("%s: %v", name, err)
		}
	}
	qemu(t, "create", "-f", "vmdk", "base.vmdk", "10M")
	qemu(t, "create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "child.vmdk")
	if _, _, err := convert(t, "child.vmdk", ""); err == nil || !strings.Contains(err.Error(), "snapshot") {
		t.Errorf("a snapshot in vmdk: %v", err)
	}
	// Written by hand: qemu-img times its key derivation, and gives up on a
	// host whose clocks it finds too coarse.
	qemu(t, "create", "-f", "qcow2", "luks", "10M")
	f, err := os.OpenFile("luks", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	const cryptMethod, luks = 32, 2 // docs/interop/qcow2.txt, bytes 32 to 35 of the header
	if _, err := f.WriteAt([]byte{0, 0, 0, luks}, cryptMethod); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, _, err := convert(t, "luks", ""); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("encrypted: %v", err)
	}
}

// TestBackingFileBehindTheCheckFindsNothing shows that the cell holds when
// the check is deceived.
func TestBackingFileBehindTheCheckFindsNothing(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("secret!\n"), 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "disk")
	qemu(t, "create", "-f", "qcow2", "-o", "data_file="+secret+",data_file_raw=on", file, "512K")
	f, size := open(t, file)
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	err = Convert(t.Context(), out, f, Header{Format: "qcow2", Size: 512 << 10, Length: size}, dir, nil)
	if b, _ := os.ReadFile(out.Name()); err == nil || bytes.Contains(b, []byte("secret!")) {
		t.Errorf("a file of the host came in: %v", err)
	}
}

func TestCutOffFilesAreRefused(t *testing.T) {
	raw := rawDisk(t)
	for _, args := range [][]string{{"qcow2"}, {"qcow2", "-c"}, {"qcow2", "-o", "extended_l2=on"}, {"vmdk"}, {"vmdk", "-o", "subformat=streamOptimized"}, {"vhdx"}, {"vpc"}, {"vdi"}} {
		format := args[0]
		make := append(append([]string{"convert", "-f", "raw", "-O"}, args...), raw)
		file := filepath.Join(t.TempDir(), "disk")
		make = append(make, file)
		qemu(t, make...)
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int64{4, 100, 512, 1 << 10, 64 << 10, 256 << 10, st.Size() / 2} {
			if size >= st.Size() {
				continue
			}
			if err := os.Truncate(file, size); err != nil {
				t.Fatal(err)
			}
			if _, _, err := convert(t, file, format); !api.IsCode(err, api.CodeCorrupt) && !api.IsCode(err, api.CodeInvalid) {
				t.Errorf("%s cut to %d: %v", format, size, err)
			}
			qemu(t, make...)
		}
	}
}

func TestFormatMustFit(t *testing.T) {
	raw := rawDisk(t)
	file := filepath.Join(t.TempDir(), "disk")
	qemu(t, "convert", "-f", "raw", "-O", "qcow2", raw, file)
	for _, format := range []string{"raw", "vmdk", "ova", "iso"} {
		if _, _, err := convert(t, file, format); !api.IsCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "but qcow2") {
			t.Errorf("as %s: %v", format, err)
		}
	}
	if _, _, err := convert(t, file, "floppy"); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := convert(t, text, ""); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
	if h, _, err := convert(t, text, "raw"); err != nil || h.Size != 5 {
		t.Errorf("a raw file of anything: %+v, %v", h, err)
	}
}

type ovaFile struct {
	name    string
	content []byte
}

func ova(t *testing.T, files ...ovaFile) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.ova")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, file := range files {
		if err := w.WriteHeader(&tar.Header{Name: file.name, Mode: 0o644, Size: int64(len(file.content)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(file.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func ovf(files, disks, systems string) []byte {
	return []byte(`<Envelope xmlns:ovf="o"><References>` + files + `</References><DiskSection>` + disks + `</DiskSection>` + systems + `</Envelope>`)
}

func TestOVA(t *testing.T) {
	raw := rawDisk(t)
	file := filepath.Join(t.TempDir(), "disk")
	qemu(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, file)
	vmdk, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const oneFile = `<File ovf:href="d.vmdk" ovf:id="f1"/>`
	const oneDisk = `<Disk ovf:fileRef="f1" ovf:diskId="d1"/>`
	const system = `<VirtualSystem/>`
	good := ovaFile{"m.ovf", ovf(oneFile, oneDisk, system)}
	disk := ovaFile{"d.vmdk", vmdk}
	mf := func(sum [32]byte) ovaFile {
		return ovaFile{"m.mf", fmt.Appendf(nil, "SHA256(d.vmdk)= %x\n", sum)}
	}
	for _, tt := range []struct {
		name  string
		files []ovaFile
		want  string // of the error; empty for none
	}{
		{"plain", []ovaFile{good, disk}, ""},
		{"with manifest", []ovaFile{good, mf(sha256.Sum256(vmdk)), disk}, ""},
		{"wrong sum", []ovaFile{good, mf([32]byte{}), disk}, "manifest says"},
		{"manifest of what is missing", []ovaFile{good, {"m.mf", []byte("SHA1(../../etc/passwd)= 00\n")}, disk}, "isn't in the archive"},
		{"disk missing", []ovaFile{good}, "isn't in the archive"},
		{"disk elsewhere", []ovaFile{{"m.ovf", ovf(`<File ovf:href="/etc/passwd" ovf:id="f1"/>`, oneDisk, system)}, disk}, "isn't in the archive"},
		{"disk by URL", []ovaFile{{"m.ovf", ovf(`<File ovf:href="http://x/d.vmdk" ovf:id="f1"/>`, oneDisk, system)}, disk}, "isn't in the archive"},
		{"two disks", []ovaFile{{"m.ovf", ovf(oneFile, oneDisk+oneDisk, system)}, disk}, "several disks"},
		{"two machines", []ovaFile{{"m.ovf", ovf(oneFile, oneDisk, system+system)}, disk}, "2 machines"},
		{"no disk", []ovaFile{{"m.ovf", ovf("", "", system)}, disk}, "names no file"},
		{"no XML", []ovaFile{{"m.ovf", []byte("hello")}, disk}, "can't be read"},
		{"compressed", []ovaFile{{"m.ovf", ovf(`<File ovf:href="d.vmdk" ovf:id="f1" ovf:compression="gzip"/>`, oneDisk, system)}, disk}, "compressed"},
		{"one in another", []ovaFile{good, {"d.vmdk", must(os.ReadFile(ova(t, good, disk)))}}, "of format ova"},
		{"disk is no disk", []ovaFile{good, {"d.vmdk", []byte("hello")}}, "no disk"},
		{"twice", []ovaFile{good, disk, disk}, "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, out, err := convert(t, ova(t, tt.files...), "")
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil || h.Format != "vmdk" {
				t.Fatalf("%+v: %v", h, err)
			}
			sameFiles(t, raw, out)
		})
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
