package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"testing"

	"github.com/cleave-project/cleave/vmm/boot"
	"github.com/cleave-project/cleave/vmm/kvm"
)

// code is a program for a guest in 32-bit protected mode without paging, in
// the few instructions that a KVM which only emulates needs long for.
type code []byte

// codeAddr is where it is entered.
const codeAddr = 0x100000

func (c *code) emit(op []byte, words ...uint32) {
	*c = append(*c, op...)
	for _, w := range words {
		*c = binary.LittleEndian.AppendUint32(*c, w)
	}
}

// out8 and out32 write to a port.
func (c *code) out8(port uint16, v byte)    { c.outAX(port, uint32(v), 0xee) }
func (c *code) out32(port uint16, v uint32) { c.outAX(port, v, 0xef) }
func (c *code) outAX(port uint16, v uint32, op byte) {
	c.emit([]byte{0xba}, uint32(port)) // mov edx, port
	c.emit([]byte{0xb8}, v)            // mov eax, v
	c.emit([]byte{op})
}

// in32 reads a port into memory.
func (c *code) in32(port uint16, to uint32) {
	c.emit([]byte{0xba}, uint32(port))
	c.emit([]byte{0xed})     // in eax, dx
	c.emit([]byte{0xa3}, to) // mov [to], eax
}

// copy8 writes a byte of memory to a port.
func (c *code) copy8(port uint16, from uint32) {
	c.emit([]byte{0xba}, uint32(port))
	c.emit([]byte{0xa0}, from) // mov al, [from]
	c.emit([]byte{0xee})
}

func (c *code) store8(at uint32, v byte) {
	c.emit([]byte{0xc6, 0x05}, at)
	*c = append(*c, v)
}

func (c *code) store16(at uint32, v uint16) {
	c.emit([]byte{0x66, 0xc7, 0x05}, at)
	*c = append(*c, byte(v), byte(v>>8))
}

func (c *code) store32(at, v uint32) { c.emit([]byte{0xc7, 0x05}, at, v) }
func (c *code) increment(at uint32)  { c.emit([]byte{0xff, 0x05}, at) }

// until jumps back to a place while memory isn't v.
func (c *code) until(at, v uint32, back int) {
	c.emit([]byte{0x81, 0x3d}, at, v)                    // cmp dword [at], v
	c.emit([]byte{0x0f, 0x85}, uint32(back-(len(*c)+6))) // jne
}

func (c *code) jump(back int) { c.emit([]byte{0xe9}, uint32(back-(len(*c)+5))) }

// exit ends the guest with a code from memory.
func (c *code) exit(from uint32) {
	c.copy8(portExit, from)
	c.emit([]byte{0xf4})
}

// kernel is the program as an ELF file with an entry for PVH.
func (c code) kernel() boot.Linux {
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
	segment(1, 1, uint64(len(b)+notes), codeAddr, uint64(len(c)))
	for _, w := range []uint32{4, 4, 18, 0x006e6558, codeAddr} {
		b = le.AppendUint32(b, w)
	}
	b = append(b, c...)
	return boot.Linux{Kernel: bytes.NewReader(b), Size: int64(len(b))}
}

// host skips where there is no KVM; one that only emulates is good enough.
func host(t testing.TB) *kvm.System {
	t.Helper()
	s, err := kvm.Open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("no KVM: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
