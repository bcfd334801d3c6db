// Package iso9660 writes small media: a root directory with a few files
// (ECMA-119, with names in Unicode by Joliet beside). The same files give the
// same bytes.
package iso9660

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// File is one on the medium.
type File struct {
	Name string
	Size int64
	Data io.Reader // gives just Size bytes
}

const sector = 2048

// Where things are, in sectors. Each directory and path table has one.
const (
	firstDescriptor = 16
	pathTables      = 19 // little and big endian, then both again for Joliet
	directories     = 23 // of ECMA-119, of Joliet
	data            = 25
)

// Flags of a directory record (ECMA-119 §9.1.6).
const isDirectory = 2

// charset encodes names: as they are, which ECMA-119 would have in capitals
// but everybody reads, or as Joliet has them, in UCS-2 (Joliet §3).
type charset func(string) []byte

func plain(s string) []byte { return []byte(s) }

func joliet(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, c)
	}
	return b
}

// Write writes a medium of that label. Files are sorted by name.
func Write(w io.Writer, label string, files []File) error {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	if err := check(label, files); err != nil {
		return err
	}
	at := uint32(data)
	extents := make([]uint32, len(files))
	for i, f := range files {
		extents[i] = at
		at += uint32((f.Size + sector - 1) / sector)
	}
	b := bufio.NewWriterSize(w, 1<<20)
	_, _ = b.Write(make([]byte, firstDescriptor*sector)) // Flush tells what failed
	for i, encode := range []charset{plain, joliet} {
		_, _ = b.Write(descriptor(byte(i+1), label, encode, at, pathTables+uint32(2*i), directories+uint32(i)))
	}
	_, _ = b.Write(pad([]byte("\xffCD001\x01")))
	for i := range uint32(2) {
		_, _ = b.Write(pad(pathTable(binary.LittleEndian, directories+i)))
		_, _ = b.Write(pad(pathTable(binary.BigEndian, directories+i)))
	}
	for i, encode := range []charset{plain, joliet} {
		dir, err := directory(files, extents, encode, directories+uint32(i))
		if err != nil {
			return err
		}
		_, _ = b.Write(dir)
	}
	for _, f := range files {
		n, err := io.CopyN(b, f.Data, f.Size)
		if err != nil {
			return fmt.Errorf("write %s: %w", f.Name, err)
		}
		if odd := n % sector; odd != 0 {
			_, _ = b.Write(make([]byte, sector-odd))
		}
	}
	return b.Flush()
}

func check(label string, files []File) error {
	if len(label) == 0 || len(label) > 16 {
		return fmt.Errorf("label %q: 1 to 16 characters are allowed", label)
	}
	for i, f := range files {
		switch {
		case f.Name == "" || len(f.Name) > 64 || strings.ContainsAny(f.Name, "/\\*:;?\x00"):
			return fmt.Errorf("file name %q: not 1 to 64 characters without */:;?\\", f.Name)
		case f.Size < 0 || f.Size >= 1<<32:
			return fmt.Errorf("file %s: of %d bytes", f.Name, f.Size)
		case i > 0 && files[i-1].Name == f.Name:
			return fmt.Errorf("file %s: twice", f.Name)
		}
	}
	return nil
}

func pad(b []byte) []byte {
	if len(b) > sector {
		panic("iso9660: more than a sector")
	}
	return append(b, make([]byte, sector-len(b))...)
}

// both16 and both32 are numbers in both byte orders (ECMA-119 §7.2.3, §7.3.3).
func both16(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
}

func both32(b []byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, v), v)
}

// descriptor is a primary or supplementary volume descriptor (ECMA-119 §8.4,
// §8.5).
func descriptor(kind byte, label string, encode charset, sectors, table, root uint32) []byte {
	space := encode(" ")
	field := func(s string, n int) []byte {
		b := encode(s)
		for len(b)+len(space) <= n {
			b = append(b, space...)
		}
		return append(b, make([]byte, n-len(b))...)
	}
	b := append([]byte{kind}, "CD001\x01\x00"...)
	b = append(b, field("", 32)...)    // system
	b = append(b, field(label, 32)...) // volume
	b = append(b, make([]byte, 8)...)
	b = both32(b, sectors)
	escapes := make([]byte, 32)
	if kind == 2 {
		copy(escapes, "%/E") // UCS-2 level 3
	}
	b = append(b, escapes...)
	b = both16(b, 1) // volumes of the set
	b = both16(b, 1) // this volume
	b = both16(b, sector)
	b = both32(b, uint32(len(pathTable(binary.LittleEndian, root))))
	b = binary.LittleEndian.AppendUint32(b, table)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, table+1)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, record([]byte{0}, root, sector, isDirectory)...)
	for _, n := range []int{128, 128, 128, 128, 37, 37, 37} { // set, publisher, preparer, application, three files
		b = append(b, field("", n)...)
	}
	for range 4 { // times: not given
		b = append(b, "0000000000000000\x00"...)
	}
	return pad(append(b, 1))
}

// pathTable has the root directory alone (ECMA-119 §9.4).
func pathTable(order binary.AppendByteOrder, root uint32) []byte {
	b := order.AppendUint32([]byte{1, 0}, root)
	b = order.AppendUint16(b, 1)
	return append(b, 0, 0)
}

// record is a directory record (ECMA-119 §9.1).
func record(name []byte, extent, size uint32, flags byte) []byte {
	b := both32([]byte{0, 0}, extent)
	b = both32(b, size)
	b = append(b, 70, 1, 1, 0, 0, 0, 0) // 1 January 1970
	b = append(b, flags, 0, 0)
	b = both16(b, 1)
	b = append(b, byte(len(name)))
	b = append(b, name...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

func directory(files []File, extents []uint32, encode charset, self uint32) ([]byte, error) {
	var b bytes.Buffer
	b.Write(record([]byte{0}, self, sector, isDirectory))
	b.Write(record([]byte{1}, self, sector, isDirectory)) // of the root, itself too
	for i, f := range files {
		b.Write(record(encode(f.Name), extents[i], uint32(f.Size), 0))
	}
	if b.Len() > sector {
		return nil, errors.New("too many files for one directory")
	}
	return pad(b.Bytes()), nil
}
