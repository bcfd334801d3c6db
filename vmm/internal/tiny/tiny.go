// Package tiny makes programs for the guests of tests: in 32-bit protected mode
// without paging, of few instructions, so that a KVM which only emulates runs
// them too.
package tiny

import (
	"bytes"
	"encoding/binary"

	"github.com/cleave-project/cleave/vmm/boot"
)

// Code is a program.
type Code []byte

// Addr is where it is entered.
const Addr = 0x100000

func (c *Code) emit(op []byte, words ...uint32) {
	*c = append(*c, op...)
	for _, w := range words {
		*c = binary.LittleEndian.AppendUint32(*c, w)
	}
}

// Out8 writes a byte to a port.
func (c *Code) Out8(port uint16, v byte) { c.outAX(port, uint32(v), 0xee) }

// Out32 writes 32 bits to a port.
func (c *Code) Out32(port uint16, v uint32) { c.outAX(port, v, 0xef) }

func (c *Code) outAX(port uint16, v uint32, op byte) {
	c.emit([]byte{0xba}, uint32(port)) // mov edx, port
	c.emit([]byte{0xb8}, v)            // mov eax, v
	c.emit([]byte{op})
}

// In32 reads a port into memory.
func (c *Code) In32(port uint16, to uint32) {
	c.emit([]byte{0xba}, uint32(port))
	c.emit([]byte{0xed})     // in eax, dx
	c.emit([]byte{0xa3}, to) // mov [to], eax
}

// Copy8 writes a byte of memory to a port.
func (c *Code) Copy8(port uint16, from uint32) {
	c.emit([]byte{0xba}, uint32(port))
	c.emit([]byte{0xa0}, from) // mov al, [from]
	c.emit([]byte{0xee})
}

// Store8 writes a byte to memory.
func (c *Code) Store8(at uint32, v byte) {
	c.emit([]byte{0xc6, 0x05}, at)
	*c = append(*c, v)
}

// Store16 writes 16 bits to memory.
func (c *Code) Store16(at uint32, v uint16) {
	c.emit([]byte{0x66, 0xc7, 0x05}, at)
	*c = append(*c, byte(v), byte(v>>8))
}

// Store32 writes 32 bits to memory.
func (c *Code) Store32(at, v uint32) { c.emit([]byte{0xc7, 0x05}, at, v) }

// Increment adds one to memory.
func (c *Code) Increment(at uint32) { c.emit([]byte{0xff, 0x05}, at) }

// Until jumps back to a place while memory isn't v.
func (c *Code) Until(at, v uint32, back int) {
	c.emit([]byte{0x81, 0x3d}, at, v)                    // cmp dword [at], v
	c.emit([]byte{0x0f, 0x85}, uint32(back-(len(*c)+6))) // jne
}

// Jump goes back to a place.
func (c *Code) Jump(back int) { c.emit([]byte{0xe9}, uint32(back-(len(*c)+5))) }

// Exit ends the machine by its port for tests with a code from memory.
func (c *Code) Exit(from uint32) {
	c.Copy8(0xf4, from)
	c.emit([]byte{0xf4})
}

// Kernel is the program as an ELF file with an entry for PVH.
func (c Code) Kernel() boot.Linux {
	const head, ph, notes = 64, 56, 20
	le := binary.LittleEndian
	b := make([]byte, head+2*ph)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // executable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], head)
	le.PutUint16(b[52:], head)
	le.PutUint16(b[54:], ph)
	le.PutUint16(b[56:], 2)
	segment := func(i int, kind uint32, off, paddr, size uint64) {
		p := b[head+i*ph:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[24:], paddr)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
	}
	segment(0, 4, uint64(len(b)), 0, notes)
	segment(1, 1, uint64(len(b)+notes), Addr, uint64(len(c)))
	for _, w := range []uint32{4, 4, 18, 0x006e6558, Addr} {
		b = le.AppendUint32(b, w)
	}
	b = append(b, c...)
	return boot.Linux{Kernel: bytes.NewReader(b), Size: int64(len(b))}
}

// Multiboot is the program as a Multiboot image that says itself where it is
// loaded to (Multiboot Specification 0.6.96, 3.1): after its header, at Addr.
func (c Code) Multiboot() boot.Linux {
	const magic, flags, header = 0x1badb002, 1 << 16, 32
	le := binary.LittleEndian
	var b []byte
	sum := uint32(magic + flags)
	for _, w := range []uint32{magic, flags, -sum, Addr, Addr, 0, 0, Addr + header} {
		b = le.AppendUint32(b, w)
	}
	b = append(b, c...)
	return boot.Linux{Kernel: bytes.NewReader(b), Size: int64(len(b))}
}

// StoreEAX writes what a register has to memory.
func (c *Code) StoreEAX(to uint32) { c.emit([]byte{0xa3}, to) }

// StoreEBX writes what a register has to memory.
func (c *Code) StoreEBX(to uint32) { c.emit([]byte{0x89, 0x1d}, to) }
