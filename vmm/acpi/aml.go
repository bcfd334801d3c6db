package acpi

import "encoding/binary"

// aml is a piece of ACPI Machine Language (ACPI 6.5, 20). The functions below
// are its grammar, as far as the tables of this package need it.
type aml []byte

func join(parts ...aml) aml {
	var out aml
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// withLength is a package: its length, which counts itself (20.2.4), then
// its content.
func withLength(content aml) aml {
	n := len(content)
	switch {
	case n+1 < 1<<6:
		return append(aml{byte(n + 1)}, content...)
	case n+2 < 1<<12:
		n += 2
		return append(aml{1<<6 | byte(n&0xf), byte(n >> 4)}, content...)
	default:
		n += 3
		return append(aml{2<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}, content...)
	}
}

// name is a name of four characters, or a path of such, from the root if it
// begins with a backslash (20.2.2).
func name(path string) aml {
	var out aml
	if path != "" && path[0] == '\\' {
		out, path = aml{'\\'}, path[1:]
	}
	var segments []string
	for len(path) >= 4 {
		segments = append(segments, path[:4])
		path = path[4:]
		if path != "" {
			path = path[1:] // the dot
		}
	}
	switch len(segments) {
	case 0:
		return append(out, 0)
	case 1:
	case 2:
		out = append(out, 0x2e)
	default:
		out = append(out, 0x2f, byte(len(segments)))
	}
	for _, s := range segments {
		out = append(out, s...)
	}
	return out
}

// integer is a constant in the least room (20.2.3).
func integer(v uint64) aml {
	switch {
	case v == 0:
		return aml{0}
	case v == 1:
		return aml{1}
	case v <= 0xff:
		return aml{0x0a, byte(v)}
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16(aml{0x0b}, uint16(v))
	case v <= 0xffffffff:
		return binary.LittleEndian.AppendUint32(aml{0x0c}, uint32(v))
	}
	return binary.LittleEndian.AppendUint64(aml{0x0e}, v)
}

// eisaID packs an identifier like PNP0A08 (ACPI 6.5, 19.3.4).
func eisaID(id string) aml {
	hex := func(i int) uint32 {
		c := id[i]
		if c >= 'A' {
			return uint32(c-'A') + 10
		}
		return uint32(c - '0')
	}
	v := uint32(id[0]-'@')<<26 | uint32(id[1]-'@')<<21 | uint32(id[2]-'@')<<16 | hex(3)<<12 | hex(4)<<8 | hex(5)<<4 | hex(6)
	return binary.BigEndian.AppendUint32(aml{0x0c}, v)
}

func text(s string) aml { return append(append(aml{0x0d}, s...), 0) }

func named(n string, value aml) aml { return join(aml{0x08}, name(n), value) }

func scope(n string, body ...aml) aml {
	return join(aml{0x10}, withLength(join(name(n), join(body...))))
}

func device(n string, body ...aml) aml {
	return join(aml{0x5b, 0x82}, withLength(join(name(n), join(body...))))
}

// method has args arguments; a serialized one runs once at a time.
func method(n string, args byte, serialized bool, body ...aml) aml {
	if serialized {
		args |= 1 << 3
	}
	return join(aml{0x14}, withLength(join(name(n), aml{args}, join(body...))))
}

func pack(elements ...aml) aml {
	return join(aml{0x12}, withLength(join(aml{byte(len(elements))}, join(elements...))))
}

func buffer(b aml) aml {
	return join(aml{0x11}, withLength(join(integer(uint64(len(b))), b)))
}

// ports is an operation region of I/O ports.
func ports(n string, at, size uint64) aml {
	return join(aml{0x5b, 0x80}, name(n), aml{1}, integer(at), integer(size))
}

// field names units of a region, each a number of bytes, accessed as such:
// access is 1 for bytes, 3 for words of 32 bits.
func field(region string, access byte, bytes int, names ...string) aml {
	body := join(name(region), aml{access})
	for _, n := range names {
		body = join(body, name(n), fieldBits(bytes*8))
	}
	return join(aml{0x5b, 0x81}, withLength(body))
}

// fieldBits is a length in bits, encoded like a package's but not counting
// itself.
func fieldBits(n int) aml {
	if n < 1<<6 {
		return aml{byte(n)}
	}
	return aml{1<<6 | byte(n&0xf), byte(n >> 4)}
}

func local(n byte) aml { return aml{0x60 + n} }

func store(value, target aml) aml     { return join(aml{0x70}, value, target) }
func notify(object string, v aml) aml { return join(aml{0x86}, name(object), v) }
func and(a, b aml) aml                { return join(aml{0x7b}, a, b, aml{0}) }

func when(condition aml, body ...aml) aml {
	return join(aml{0xa0}, withLength(join(condition, join(body...))))
}

// resources is a template of what a device takes, with its end tag (6.4.2.9).
func resources(descriptors ...aml) aml { return buffer(append(join(descriptors...), 0x79, 0)) }

// ioPorts is an I/O port descriptor (6.4.2.5).
func ioPorts(at uint16, n byte) aml {
	return aml{0x47, 1, byte(at), byte(at >> 8), byte(at), byte(at >> 8), 1, n}
}

// interrupt is an extended one (6.4.3.6): edge-triggered, active high,
// consumed.
func interrupt(gsi uint32) aml {
	return binary.LittleEndian.AppendUint32(aml{0x89, 6, 0, 0x03, 1}, gsi)
}

// fixedMemory is a 32-bit fixed memory range (6.4.3.4), writable.
func fixedMemory(at, size uint32) aml {
	out := aml{0x86, 9, 0, 1}
	out = binary.LittleEndian.AppendUint32(out, at)
	return binary.LittleEndian.AppendUint32(out, size)
}

// Kinds of address spaces (6.4.3.5).
const (
	spaceMemory = 0
	spaceIO     = 1
	spaceBus    = 2
)

// window is an address space that a bridge produces, of 16, 32 or 64 bits.
func window(kind byte, bits int, from, to uint64) aml {
	tag, flags := map[int]byte{16: 0x88, 32: 0x87, 64: 0x8a}[bits], byte(0)
	switch kind {
	case spaceMemory:
		flags = 1 // read-write, not cacheable
	case spaceIO:
		flags = 3 // the whole range
	}
	put := func(b aml, v uint64) aml {
		switch bits {
		case 16:
			return binary.LittleEndian.AppendUint16(b, uint16(v))
		case 32:
			return binary.LittleEndian.AppendUint32(b, uint32(v))
		}
		return binary.LittleEndian.AppendUint64(b, v)
	}
	body := aml{kind, 0x0c, flags} // minimum and maximum are fixed
	for _, v := range []uint64{0, from, to, 0, to - from + 1} {
		body = put(body, v)
	}
	return join(binary.LittleEndian.AppendUint16(aml{tag}, uint16(len(body))), body)
}
