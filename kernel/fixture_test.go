package kernel

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/cleave-project/cleave/api"
)

const testRelease = "6.1.0-9-cloud-amd64"

// bzImageOf is a kernel for x86 with a setup header and nothing to run.
func bzImageOf(release string) []byte {
	b := make([]byte, 16<<10)
	le := binary.LittleEndian
	b[0x1f1] = 15
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint16(b[0x20e:], 0x1000)
	b[0x211] = 1
	b[0x236] = 1
	copy(b[0x1200:], release+" (someone@somewhere) #1 SMP\x00")
	return b
}

// imageOf is a kernel whose magic stands at byte 56, with a banner.
func imageOf(magic, release string) []byte {
	b := make([]byte, 3<<20)
	copy(b, "MZ")
	copy(b[0x38:], magic)
	copy(b[2<<20:], "Linux version %s\x00Linux version "+release+" (someone@somewhere)")
	return b
}

// zbootOf packs a kernel as EFI applications are.
func zbootOf(format string, payload []byte) []byte {
	b := make([]byte, 512)
	copy(b, "MZ\x00\x00zimg")
	binary.LittleEndian.PutUint32(b[8:], 512)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	copy(b[24:], format)
	return append(b, payload...)
}

// elfOf is a program for a machine with sections, by name.
func elfOf(machine uint16, sections map[string][]byte) []byte {
	const header, entry = 64, 64
	le := binary.LittleEndian
	names := append([]string{"", ".shstrtab"}, slices.Sorted(func(yield func(string) bool) {
		for n := range sections {
			if !yield(n) {
				return
			}
		}
	})...)
	var strtab bytes.Buffer
	at := map[string]int{}
	for _, n := range names {
		at[n] = strtab.Len()
		strtab.WriteString(n + "\x00")
	}
	body, table := make([]byte, header), []byte{}
	for _, n := range names {
		content := sections[n]
		if n == ".shstrtab" {
			content = strtab.Bytes()
		}
		s := make([]byte, entry)
		if n != "" {
			le.PutUint32(s, uint32(at[n]))
			le.PutUint32(s[4:], map[bool]uint32{true: 3, false: 1}[n == ".shstrtab"])
			le.PutUint64(s[24:], uint64(len(body)))
			le.PutUint64(s[32:], uint64(len(content)))
		}
		body, table = append(body, content...), append(table, s...)
	}
	copy(body, "\x7fELF\x02\x01\x01")
	le.PutUint16(body[16:], 2)
	le.PutUint16(body[18:], machine)
	le.PutUint32(body[20:], 1)
	le.PutUint64(body[40:], uint64(len(body)))
	le.PutUint16(body[52:], header)
	le.PutUint16(body[54:], 56)
	le.PutUint16(body[58:], entry)
	le.PutUint16(body[60:], uint16(len(names)))
	le.PutUint16(body[62:], 1)
	return append(body, table...)
}

func umlOf(release string) []byte {
	return append(elfOf(uint16(machines[runtime.GOARCH]), map[string][]byte{".uml.setup.init": {0}}), "Linux version "+release+" (x)"...)
}

// moduleOf is a module that says info of itself.
func moduleOf(info ...string) []byte {
	return elfOf(62, map[string][]byte{".modinfo": []byte(strings.Join(info, "\x00") + "\x00")})
}

// file is one of a package.
type file struct {
	name    string
	content []byte
}

// modulesOf are the modules that a kernel for virtual machines has in
// fixtures: one of them depends on another, one is compressed, some are
// built in.
func modulesOf(release string) []file {
	dir := "lib/modules/" + release + "/"
	list := []file{
		{dir + "modules.builtin", []byte("kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n")},
		{dir + "modules.builtin.modinfo", []byte("ext4.alias=fs-ext4\x00ext4.license=GPL\x00")},
		{dir + "kernel/virtio/virtio-ring.ko", moduleOf("name=virtio_ring", "depends=virtio")},
		{dir + "kernel/virtio/virtio.ko", moduleOf("name=virtio", "depends=")},
		{dir + "kernel/fs/overlay.ko.xz", xzOf(moduleOf("name=overlay", "depends=", "alias=fs-overlay"))},
		{dir + "kernel/fs/erofs.ko.zst", zstdOf(moduleOf("name=erofs", "depends=libcrc32c", "alias=fs-erofs"))},
		{dir + "kernel/lib/libcrc32c.ko.gz", gzipOf(moduleOf("name=libcrc32c", "depends=", "softdep=pre: crc32c"))},
		{dir + "kernel/arch/crc32c-fast.ko", moduleOf("name=crc32c_fast", "depends=", "alias=crc32c", "alias=crypto-crc32c")},
		{dir + "kernel/crypto/crc32c_generic.ko", moduleOf("name=crc32c_generic", "depends=", "alias=crc32c")},
		{dir + "kernel/fs/fuse.ko", moduleOf("name=fuse", "depends=", "alias=char-major-10-229", "alias=devname:fuse", "alias=fs-fuse")},
	}
	for _, m := range []string{"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng"} {
		list = append(list, file{dir + "kernel/virtio/" + m + ".ko", moduleOf("name="+m, "depends=virtio-ring,virtio", "alias=virtio:d00000001v*")})
	}
	return list
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func xzOf(b []byte) []byte {
	var out bytes.Buffer
	w := must(xz.NewWriter(&out))
	must(w.Write(b))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func zstdOf(b []byte) []byte {
	return must(zstd.NewWriter(nil)).EncodeAll(b, nil)
}

func gzipOf(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	must(w.Write(b))
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func tarOf(files ...file) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: "./" + f.name, Mode: 0o644, Size: int64(len(f.content))}); err != nil {
			panic(err)
		}
		must(w.Write(f.content))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func arOf(files ...file) []byte {
	b := []byte(arMagic)
	for _, f := range files {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", f.name, 0, 0, 0, "100644", len(f.content))
		b = append(b, f.content...)
		b = append(b, make([]byte, len(f.content)&1)...)
	}
	return b
}

// debOf is a package with files.
func debOf(name string, files ...file) []byte {
	control := "Package: " + name + "\nVersion: 1:2.0-1\nArchitecture: amd64\nDescription: x\n"
	return arOf(
		file{"debian-binary", []byte("2.0\n")},
		file{"control.tar.gz", gzipOf(tarOf(file{"control", []byte(control)}))},
		file{"data.tar.zst", zstdOf(tarOf(files...))},
	)
}

// kernelDeb is a package with a kernel for virtual machines.
func kernelDeb(release string) []byte {
	return debOf("linux-image-"+release, append(modulesOf(release), file{"boot/vmlinuz-" + release, bzImageOf(release)}, file{"usr/share/doc/x/copyright", []byte("x")})...)
}

func write(t testing.TB, path string, content []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// agentOf is a static program for an architecture, which can't be executed.
func agentOf(arch string) []byte { return elfOf(uint16(machines[arch]), nil) }

// newStore opens a store with agents for all architectures.
func newStore(t *testing.T) *Store {
	t.Helper()
	return reopen(t, t.TempDir())
}

func reopen(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Options{
		Dir:   filepath.Join(dir, "kernels"),
		Agent: func(arch string) (string, error) { return filepath.Join(dir, "agent."+arch), nil },
		Log:   slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for arch := range machines {
		if p := filepath.Join(dir, "agent."+arch); !exists(p) {
			write(t, p, agentOf(arch))
		}
	}
	return s
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func names(list []api.Kernel) []string {
	var n []string
	for _, k := range list {
		name := k.Name
		if k.Default {
			name += "*"
		}
		n = append(n, name)
	}
	return n
}

// sent reads as an upload does.
func sent(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }
