package vmm

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"
)

// A Multiboot image gets what the specification promises (0.6.96, 3.2 and 3.3),
// and ends the machine with a word.
func TestAMultibootImageIsEnteredAndEndsByThePortForTests(t *testing.T) {
	var c code
	c.StoreEAX(scratch)
	c.StoreEBX(scratch + 4)
	c.Out8(serialPort, '!')
	c.Out32(portExit, 0x1234)
	l := c.Multiboot()
	l.Command, l.Initrd, l.InitrdSize = "one two", strings.NewReader("a module"), 8
	var said bytes.Buffer
	m, err := New(host(t), Config{CPUs: 1, Memory: 16 << 20, Linux: l, Console: &said})
	if err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(2*time.Minute, m.Stop)
	t.Cleanup(func() { guard.Stop(); m.Close() })
	if end := m.mustRun(t); end != (End{Reason: TestExit, Code: 0x1234}) {
		t.Fatalf("ended by %+v", end)
	}
	if said.String() != "!" {
		t.Errorf("it said %q", said.String())
	}
	registers, _ := m.memory.Slice(scratch, 8)
	if eax := binary.LittleEndian.Uint32(registers); eax != 0x2badb002 {
		t.Errorf("EAX is %#x", eax)
	}
	word := func(at uint32) uint32 {
		b, err := m.memory.Slice(uint64(at), 4)
		if err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint32(b)
	}
	info := binary.LittleEndian.Uint32(registers[4:])
	module := word(info + 24)
	for what, got := range map[string]string{
		"kernel one two": string(must(m.memory.Slice(uint64(word(info+16)), 14))),
		"a module":       string(must(m.memory.Slice(uint64(word(module)), uint64(word(module+4)-word(module))))),
	} {
		if got != what {
			t.Errorf("%q instead of %q", got, what)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

func TestAKernelOfNoKindIsRefused(t *testing.T) {
	l := code{}.Multiboot()
	b := make([]byte, l.Size)
	if _, err := l.Kernel.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b[4] ^= 1 << 2 // wants a video mode, and the sum is wrong
	l.Kernel = bytes.NewReader(b)
	if _, err := New(host(t), Config{CPUs: 1, Memory: 16 << 20, Linux: l, Console: io.Discard}); err == nil {
		t.Error("it boots")
	}
}
