package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm/internal/tiny"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/virtio/rng"
)

// Where the guests of these tests keep what they know.
const (
	scratch   = 0x200000
	descTable = 0x210000
	availRing = 0x211000
	usedRing  = 0x212000
	buffer    = 0x213000
)

// newMachine makes a machine for a program, with a guard against one that
// never ends.
func newMachine(t *testing.T, c code, console io.Writer, devices ...Device) *Machine {
	t.Helper()
	m, err := New(host(t), Config{CPUs: 1, Memory: 16 << 20, Linux: c.Kernel(), Console: console, Devices: devices})
	if err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(2*time.Minute, m.Stop)
	t.Cleanup(func() { guard.Stop(); m.Close() })
	return m
}

func (m *Machine) mustRun(t *testing.T) End {
	t.Helper()
	end, err := m.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// code is a program with a driver.
type code struct{ tiny.Code }

// config writes a register of slot 1's configuration space.
func (c *code) config(register, v uint32) {
	c.Out32(0xcf8, 1<<31|1<<11|register)
	c.Out32(0xcfc, v)
}

// bar is where the machine puts the memory of the device in slot 1.
const bar = lowWindow + barStep

// driver sets up queue 0 of the device in slot 1, up to DRIVER_OK.
func (c *code) driver() {
	c.config(4, 6) // memory, bus master
	for _, s := range []byte{0, 1, 3} {
		c.Store8(bar+20, s)
	}
	c.Store32(bar+8, 1)
	c.Store32(bar+12, 1) // VERSION_1
	c.Store8(bar+20, 11)
	c.Store16(bar+24, 8)
	c.Store32(bar+32, descTable)
	c.Store32(bar+40, availRing)
	c.Store32(bar+48, usedRing)
	c.Store16(bar+28, 1)
	c.Store8(bar+20, 15)
}

// ask makes a request of 16 bytes, the n-th, and waits for it.
func (c *code) ask(n uint16) {
	c.Store32(descTable, buffer)
	c.Store32(descTable+8, 16)
	c.Store16(descTable+12, 2)
	c.Store16(availRing+4+2*uint32((n-1)%8), 0)
	c.Store16(availRing+2, n)
	c.Store16(bar+0x3000, 0) // notify
	here := len(c.Code)
	c.Until(usedRing, uint32(n)<<16, here)
}

func TestAGuestFindsItsDeviceAndUsesIt(t *testing.T) {
	var c code
	c.Out32(0xcf8, 1<<31|1<<11)
	c.In32(0xcfc, scratch)
	c.driver()
	for i := range uint16(3) {
		c.ask(i + 1)
	}
	c.Store8(scratch+8, 42)
	c.Exit(scratch + 8)
	m := newMachine(t, c, io.Discard, Device{"rng0", rng.New()})
	if end := m.mustRun(t); end != (End{Reason: TestExit, Code: 42}) {
		t.Fatalf("ended by %+v", end)
	}
	id, _ := m.memory.Slice(scratch, 4)
	if !bytes.Equal(id, []byte{0xf4, 0x1a, 0x44, 0x10}) {
		t.Errorf("device % x", id)
	}
	if b, _ := m.memory.Slice(buffer, 16); bytes.Equal(b, make([]byte, 16)) {
		t.Error("no entropy")
	}
}

func TestAProcessorThatIsResetResetsTheMachine(t *testing.T) {
	m := newMachine(t, code{}, io.Discard)
	c := m.cpus[0].cpu
	s, err := c.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CR0 &^= cr0PE
	for _, g := range []*kvm.Segment{&s.CS, &s.DS, &s.ES, &s.SS} {
		*g = kvm.Segment{Limit: 0xffff, Type: 3, Present: 1, S: 1}
	}
	s.CS.Type, s.CS.Selector, s.CS.Base = 11, 0xf000, 0xf0000
	if err := errors.Join(c.SetSregs(s), c.SetRegs(kvm.Regs{RIP: resetVector & 0xffff, RFLAGS: 2})); err != nil {
		t.Fatal(err)
	}
	if end := m.mustRun(t); end.Reason != Restart {
		t.Errorf("ended by %+v", end)
	}
}

func TestWhereAProcessorGaveUpIsTold(t *testing.T) {
	var c code
	c.Store8(scratch, 1)
	at := tiny.Addr + len(c.Code)
	c.Code = append(c.Code, 0x0f, 0x0b) // ud2, for which there is no handler
	end := newMachine(t, c, io.Discard).mustRun(t)
	if end.Reason != TripleFault || end.Where != unknownFault(0) && !strings.Contains(end.Where, fmt.Sprintf("vCPU 0 at %#x", at)) {
		t.Errorf("ended by %+v", end)
	}
}

// signals is a console that tells of each byte.
type signals chan byte

func (s signals) Write(p []byte) (int, error) {
	for _, b := range p {
		s <- b
	}
	return len(p), nil
}

func (s signals) wait(t *testing.T, want byte) {
	t.Helper()
	select {
	case b := <-s:
		if b != want {
			t.Fatalf("the guest says %d instead of %d", b, want)
		}
	case <-time.After(time.Minute):
		t.Fatal("the guest says nothing")
	}
}

// counter is a guest that counts on its serial port for ever, between requests
// for entropy.
func counter() code {
	var c code
	c.driver()
	loop := len(c.Code)
	c.Increment(scratch)
	c.Copy8(serialPort, scratch)
	c.Jump(loop)
	return c
}

func TestAPausedGuestGoesOnWhereItWas(t *testing.T) {
	said := make(signals)
	m := newMachine(t, counter(), said, Device{"rng0", rng.New()})
	ended := make(chan struct{})
	go func() { defer close(ended); m.mustRun(t) }()
	for i := range byte(3) {
		said.wait(t, i+1)
	}
	paused := make(chan error)
	go func() { paused <- m.Pause() }()
	next := byte(4)
	for waiting := true; waiting; {
		select {
		case b := <-said: // those that it says before it is stopped
			if b != next {
				t.Fatalf("it says %d instead of %d", b, next)
			}
			next++
		case err := <-paused:
			if err != nil {
				t.Fatal(err)
			}
			waiting = false
		}
	}
	select {
	case b := <-said:
		t.Errorf("it says %d while it is paused", b)
	default:
	}
	if err := m.Resume(); err != nil {
		t.Fatal(err)
	}
	said.wait(t, next)
	go func() {
		for range said {
		}
	}()
	m.Stop()
	<-ended
	close(said)
}

func TestADeviceComesAndGoes(t *testing.T) {
	var c code
	c.Out8(serialPort, 1)
	for range 2 { // a device comes, and is let go of when that is asked for
		here := len(c.Code)
		c.In32(portSlots, scratch)
		c.Until(scratch, 1<<1, here)
		c.config(4, 6)
		c.Store8(scratch+4, 7)
		c.Copy8(serialPort, scratch+4)
		here = len(c.Code)
		c.In32(portSlots+4, scratch)
		c.Until(scratch, 1<<1, here)
		c.Out32(portSlots+8, 1<<1)
	}
	c.Out8(portReset, 1)
	said := make(signals)
	m := newMachine(t, c, said)
	left := make(chan string, 2)
	m.ejected = func(d Device) { left <- d.Name }
	ended := make(chan End)
	go func() { ended <- m.mustRun(t) }()
	said.wait(t, 1)
	for range 2 {
		if err := m.Add(Device{"rng0", rng.New()}); err != nil {
			t.Fatal(err)
		}
		if m.Add(Device{"rng0", rng.New()}) == nil {
			t.Error("two devices of one name")
		}
		said.wait(t, 7)
		if err := m.Remove(t.Context(), "rng0"); err != nil {
			t.Fatal(err)
		}
		select {
		case name := <-left:
			if name != "rng0" || len(m.Devices()) != 0 {
				t.Errorf("%s left, and there are %v", name, m.Devices())
			}
		default:
			t.Error("who plugged it in isn't told before Remove returns")
		}
	}
	if end := <-ended; end.Reason != Restart {
		t.Errorf("ended by %+v", end)
	}
}
