// Package disk knows the files in which other systems keep disks: it finds
// out what one is, refuses those that aren't whole in themselves or that lie,
// has the others converted to raw, and writes raw disks as what others read.
//
// All of them are hostile input. Headers are checked here, in bounded memory;
// what follows them is read by qemu-img alone, shut in a cell (package
// internal/cell) that holds nothing but source and target. The check makes
// for errors that say what to do; the cell is what holds.
package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Formats are those that can be imported.
var Formats = []string{"raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "ova", "iso"}

// ExportFormats are those that can be exported.
var ExportFormats = []string{"qcow2", "raw", "ova"}

// Machine describes to others what a disk was running in.
type Machine struct {
	Name     string
	CPUs     int
	Memory   api.Bytes
	Firmware string // bios or uefi
}

// MaxSize bounds the disk that a guest sees: more than ext4 has in one file.
const MaxSize = 16 << 40

// HeadSize is how many bytes of a file Detect looks at.
const HeadSize = isoSector*17 + 8

// Header is what a checked file holds.
type Header struct {
	Format string // one of Formats, and never ova
	Size   int64  // of the disk that a guest sees
	// Offset and Length are where in the file the format's own data are.
	Offset, Length int64
	Firmware       string // bios or uefi, if the file says so; else it is guessed
}

// Raw tells whether the data are the disk's own, so that there is nothing to
// convert.
func (h Header) Raw() bool { return h.Format == "raw" || h.Format == "iso" }

// Detect finds out a format by a file's first HeadSize bytes; empty if it is
// none of a disk. A disk without a partition table is not found out.
func Detect(head []byte) string {
	at := func(offset int, magic string) bool {
		return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
	}
	switch {
	case at(0, qcow2Magic):
		return "qcow2"
	case at(0, vmdkMagic), at(0, vmdkESXMagic), at(0, vmdkTextMagic):
		return "vmdk"
	case at(0, vhdxMagic):
		return "vhdx"
	case at(0, vhdMagic):
		return "vpc"
	case at(vdiMagicAt, vdiMagic):
		return "vdi"
	case isOVA(head):
		return "ova"
	case at(isoFirst+1, isoMagic): // also when a partition table makes it a disk as well
		return "iso"
	case at(510, "\x55\xaa"), at(512, gptMagic), at(4096, gptMagic):
		return "raw"
	}
	return ""
}

// Check reads a file's headers. Format is one of Formats; empty has it found
// out. Of an OVA it also compares the checksums, which means to read it all.
func Check(ctx context.Context, r io.ReaderAt, size int64, format string) (Header, error) {
	f := cancelledAt{ctx, r}
	found, err := detect(f, size)
	if err != nil {
		return Header{}, err
	}
	switch {
	case format == "" && found == "":
		return Header{}, api.Errorf(api.CodeInvalid, "it is no disk in a known format").
			WithHint("known are %s; for a raw disk without partitions say --format raw", strings.Join(Formats, ", "))
	case format == "":
		format = found
	case !slices.Contains(Formats, format):
		return Header{}, api.Errorf(api.CodeInvalid, "%.20q is no format of disks", format).WithField("format").
			WithHint("choose one of %s", strings.Join(Formats, ", "))
	case format == "raw" && found == "iso":
		// The medium of an installer may be meant to be used as a disk.
	case format != found && (format != "raw" || found != ""):
		return Header{}, api.Errorf(api.CodeInvalid, "it is no %s file%s", format, isRather(found)).WithField("format").
			WithHint("leave the format out to have it found out")
	}
	h, err := check(ctx, f, size, format)
	if err != nil {
		return Header{}, err
	}
	if h.Size <= 0 || h.Size > MaxSize {
		return Header{}, api.Errorf(api.CodeInvalid, "it says that its disk has %d bytes; from 1 to %d are accepted", h.Size, int64(MaxSize))
	}
	return h, nil
}

func isRather(found string) string {
	if found == "" {
		return ""
	}
	return " but " + found
}

func check(ctx context.Context, f io.ReaderAt, size int64, format string) (Header, error) {
	whole := func(format string, disk int64, err error) (Header, error) {
		return Header{Format: format, Size: disk, Length: size}, err
	}
	switch format {
	case "qcow2":
		n, err := checkQcow2(f, size)
		return whole(format, n, err)
	case "vmdk":
		n, err := checkVMDK(f, size)
		return whole(format, n, err)
	case "vhdx":
		n, err := checkVHDX(f, size)
		return whole(format, n, err)
	case "vdi":
		n, err := checkVDI(f, size)
		return whole(format, n, err)
	case "vpc":
		return checkVHD(f, size)
	case "ova":
		return checkOVA(ctx, f, size)
	case "iso":
		firmware, err := checkISO(f, size)
		return Header{Format: format, Size: size, Length: size, Firmware: firmware}, err
	}
	return whole("raw", size, checkRaw(f, size))
}

// detect is Detect, for a file that can also be looked at from its end.
func detect(f io.ReaderAt, size int64) (string, error) {
	head := make([]byte, min(HeadSize, size))
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return "", err
	}
	format := Detect(head)
	if format == "raw" || format == "" {
		if _, err := readVHDFooter(f, size-vhdFooterSize); err == nil {
			return "vpc", nil // of fixed size: only its end tells
		}
	}
	return format, nil
}

// read reads exactly so many bytes; a file that ends before is cut off.
func read(f io.ReaderAt, size, offset int64, n int) ([]byte, error) {
	if offset < 0 || int64(n) > size || offset > size-int64(n) {
		return nil, corrupt("it is cut off: something should be at %d, and it ends at %d", offset, size)
	}
	b := make([]byte, n)
	if got, err := f.ReadAt(b, offset); got < n {
		if err == io.EOF {
			err = corrupt("it is cut off: %d bytes should be at %d", n, offset)
		}
		return nil, err
	}
	return b, nil
}

// cancelledAt is a file that can be read until its context ends.
type cancelledAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (c cancelledAt) ReadAt(p []byte, offset int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.ReadAt(p, offset)
}

func corrupt(format string, args ...any) error { return api.Errorf(api.CodeCorrupt, format, args...) }

// incomplete refuses an image that needs other files beside it.
func incomplete(needs string) error {
	return api.Errorf(api.CodeInvalid, "it needs %s, and an image must be whole in itself", needs).
		WithHint("make one file of both where they are: qemu-img convert -O qcow2 IMAGE whole.qcow2")
}

// cString is a fixed field of text that zero bytes fill up.
func cString(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}

var (
	be = binary.BigEndian
	le = binary.LittleEndian
)
