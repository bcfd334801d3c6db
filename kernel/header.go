package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"runtime"

	"github.com/cleave-project/cleave/api"
)

// header is what a kernel's file says of itself.
type header struct {
	kind    api.Kind
	arch    string // as Go names it
	release string // empty if the file doesn't say
	// packed is where a compressed kernel lies in the file; what it is shows
	// when it is unpacked. Nil for a kernel that can be booted as it is.
	packed *io.SectionReader
	// payload is the compressed vmlinux in a bzImage, which can be booted
	// with or without it.
	payload *io.SectionReader
}

// errNoKernel is an answer of identify.
var errNoKernel = errors.New("it is not a kernel: neither a bzImage, an Image of arm64 or riscv64, nor linux.uml")

// headSize holds every header that is looked at, beside those of ELF.
const headSize = 0x400

// identify tells what kernel a file of size bytes is by its first bytes. It
// believes nothing that lies outside of the file.
func identify(f io.ReaderAt, size int64) (*header, error) {
	b := make([]byte, headSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch b := b[:n]; {
	case len(b) < 64:
		return nil, errNoKernel
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b, 0x08}):
		return &header{packed: io.NewSectionReader(f, 0, size)}, nil
	case bytes.HasPrefix(b, []byte("MZ\x00\x00zimg")):
		return zboot(f, b, size)
	case bytes.HasPrefix(b, []byte(elf.ELFMAG)):
		return elfKernel(f, size)
	case string(b[0x38:0x3c]) == "ARM\x64":
		// Documentation/arch/arm64/booting.rst: magic number at 56.
		return image(f, size, "arm64")
	case string(b[0x38:0x3c]) == "RSC\x05":
		// Documentation/arch/riscv/boot-image-header.rst: magic2 at 56. The
		// magic at 48 is deprecated there.
		return image(f, size, "riscv64")
	case len(b) == headSize && string(b[0x202:0x206]) == "HdrS":
		return bzImage(f, b, size)
	}
	return nil, errNoKernel
}

// bzImage reads the setup header of Documentation/arch/x86/boot.rst.
func bzImage(f io.ReaderAt, b []byte, size int64) (*header, error) {
	const (
		setupSects = 0x1f1 // in units of 512 bytes, without the boot sector
		bootFlag   = 0x1fe
		version    = 0x206 // of the protocol
		release    = 0x20e // pointer to the version string, less 0x200
		loadFlags  = 0x211 // bit 0: the kernel is loaded at 1 MiB
		xloadFlags = 0x236 // bit 0: has a 64-bit entry point
	)
	le := binary.LittleEndian
	if le.Uint16(b[bootFlag:]) != 0xaa55 {
		return nil, errNoKernel
	}
	if v := le.Uint16(b[version:]); v < 0x20c || b[loadFlags]&1 == 0 || b[xloadFlags]&1 == 0 {
		return nil, fmt.Errorf("it is a kernel for x86, but not one of 64 bits (boot protocol %d.%02d)", v>>8, v&0xff)
	}
	// boot.rst: a setup_sects of 0 means 4.
	sects := int64(b[setupSects])
	if sects == 0 {
		sects = 4
	}
	if end := (sects + 1) * 512; end >= size {
		return nil, errors.New("it is a bzImage that is cut off")
	}
	h := &header{kind: api.KindVM, arch: "amd64", payload: payload(f, b, size, sects)}
	at := int64(le.Uint16(b[release:]))
	if at == 0 || at >= sects*512 {
		return h, nil
	}
	text := make([]byte, maxRelease+1)
	n, err := f.ReadAt(text, at+0x200)
	if err != nil && err != io.EOF {
		return nil, err
	}
	h.release = releaseOf(text[:n])
	return h, nil
}

// image is a kernel whose header doesn't tell its release.
func image(f io.ReaderAt, size int64, arch string) (*header, error) {
	release, err := banner(f, size)
	return &header{kind: api.KindVM, arch: arch, release: release}, err
}

// zboot reads the header of a compressed EFI application (Linux
// drivers/firmware/efi/libstub/zboot-header.S), which only firmware unpacks.
func zboot(f io.ReaderAt, b []byte, size int64) (*header, error) {
	le := binary.LittleEndian
	off, length := int64(le.Uint32(b[8:])), int64(le.Uint32(b[12:]))
	if off+length > size || length == 0 {
		return nil, errors.New("it is a compressed kernel that is cut off")
	}
	format, _, _ := bytes.Cut(b[24:56], []byte{0})
	switch string(format) {
	case "gzip", "zstd", "zstd22":
		return &header{packed: io.NewSectionReader(f, off, length)}, nil
	}
	return nil, fmt.Errorf("it is a kernel compressed by %q, which can't be unpacked here", format)
}

// elfKernel tells User Mode Linux and a vmlinux that can be booted by PVH
// from other programs.
func elfKernel(f io.ReaderAt, size int64) (*header, error) {
	// A slice of the file, so that sizes in headers are held to it.
	e, err := elf.NewFile(io.NewSectionReader(f, 0, size))
	if err != nil {
		return nil, fmt.Errorf("it is a damaged program: %w", err)
	}
	defer e.Close()
	if e.Section(".uml.setup.init") != nil {
		if e.Machine != machines[runtime.GOARCH] || e.Class != elf.ELFCLASS64 {
			return nil, fmt.Errorf("it is User Mode Linux for %s, and runs on such hosts only", e.Machine)
		}
		release, err := banner(f, size)
		return &header{kind: api.KindPVM, arch: runtime.GOARCH, release: release}, err
	}
	if e.Machine == elf.EM_X86_64 && pvhEntry(e) {
		release, err := banner(f, size)
		return &header{kind: api.KindVM, arch: "amd64", release: release}, err
	}
	return nil, errors.New("it is a program, but neither linux.uml nor a vmlinux with an entry point for PVH (CONFIG_PVH)")
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "riscv64": elf.EM_RISCV}

// pvhEntry looks for the ELF note XEN_ELFNOTE_PHYS32_ENTRY (Linux
// include/xen/interface/elfnote.h), by which QEMU starts a vmlinux.
func pvhEntry(e *elf.File) bool {
	const physEntry, maxNotes = 18, 1 << 20
	for _, p := range e.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			continue
		}
		for len(b) >= 12 {
			name, desc := e.ByteOrder.Uint32(b), e.ByteOrder.Uint32(b[4:])
			end := 12 + align4(int64(name)) + align4(int64(desc))
			if end > int64(len(b)) {
				break
			}
			if e.ByteOrder.Uint32(b[8:]) == physEntry && string(b[12:12+min(name, 4)]) == "Xen\x00" {
				return true
			}
			b = b[end:]
		}
	}
	return false
}

func align4(n int64) int64 { return (n + 3) &^ 3 }

const maxRelease = 64 // __NEW_UTS_LEN of Linux include/uapi/linux/utsname.h

// releaseRE is what uname -r can say, and can name a directory.
var releaseRE = regexp.MustCompile(`^[0-9][A-Za-z0-9.+_~-]*$`)

// releaseOf is the first word of a text.
func releaseOf(text []byte) string {
	end := bytes.IndexAny(text, " \x00")
	if end < 0 || end > maxRelease || !releaseRE.Match(text[:end]) {
		return ""
	}
	return string(text[:end])
}

// banner finds the release in the text that a kernel prints first
// (linux_banner in Linux init/version-timestamp.c).
func banner(f io.ReaderAt, size int64) (string, error) {
	word := []byte("Linux version ")
	const overlap = 14 + maxRelease + 1
	buf := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(buf)) - overlap {
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return "", err
		}
		for b := buf[:n]; ; {
			i := bytes.Index(b, word)
			if i < 0 {
				break
			}
			b = b[i+len(word):]
			if r := releaseOf(b); r != "" {
				return r, nil
			}
		}
		if err == io.EOF {
			break
		}
	}
	return "", nil
}

// checkAgent refuses an agent that a guest of that architecture could not
// execute from an initramfs: one for others, or one that needs libraries.
func checkAgent(name string, program []byte, arch string) error {
	e, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("the agent %s: %w", name, err)
	}
	if e.Machine != machines[arch] {
		return fmt.Errorf("the agent %s is for %s and not for %s", name, e.Machine, arch)
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("the agent %s is linked dynamically: build it with CGO_ENABLED=0", name)
		}
	}
	return nil
}
