package serial

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// port is a UART with what it did to its line.
type port struct {
	*UART
	out   bytes.Buffer
	level bool
}

func open() *port {
	p := &port{}
	p.UART = New(&p.out, func(level bool) { p.level = level })
	return p
}

func TestBytesGoOut(t *testing.T) {
	p := open()
	for _, c := range []byte("hi") {
		if p.In(regLSR)&lsrTransmitted != lsrTransmitted {
			t.Fatal("the transmitter is not empty")
		}
		p.Out(regData, c)
	}
	if p.out.String() != "hi" {
		t.Errorf("sent %q", &p.out)
	}
}

func TestBytesComeInWithAnInterrupt(t *testing.T) {
	p := open()
	p.Out(regMCR, mcrOut2)
	p.Out(regIER, ierReceived)
	if _, err := p.Write([]byte("ab")); err != nil {
		t.Fatal(err)
	}
	got := ""
	for p.level {
		if p.In(regIIR)&0xf != iirReceived {
			t.Fatal("the interrupt isn't for what was received")
		}
		got += string(rune(p.In(regData)))
	}
	if got != "ab" || p.In(regLSR)&lsrReady != 0 {
		t.Errorf("received %q", got)
	}
}

func TestAnEmptyTransmitterInterruptsUntilAsked(t *testing.T) {
	p := open()
	p.Out(regMCR, mcrOut2)
	p.Out(regIER, ierTransmitted)
	if !p.level || p.In(regIIR)&0xf != iirTransmitted || p.level {
		t.Error("no interrupt for the empty transmitter, or one that stays")
	}
	p.Out(regData, 'x')
	if !p.level {
		t.Error("no interrupt for the byte that was sent")
	}
	p.Out(regMCR, 0)
	if p.level {
		t.Error("OUT2 doesn't gate the interrupt")
	}
}

func TestDivisorHidesBehindDLAB(t *testing.T) {
	p := open()
	p.Out(regLCR, lcrDLAB|3)
	p.Out(regData, 0x34)
	p.Out(regIER, 0x12)
	if p.In(regData) != 0x34 || p.In(regIER) != 0x12 {
		t.Error("the divisor isn't kept")
	}
	p.Out(regLCR, 3)
	if p.out.Len() != 0 || p.In(regIER) != 0 {
		t.Error("the divisor is taken for data")
	}
}

func TestLoopbackStaysInside(t *testing.T) {
	p := open()
	p.Out(regMCR, mcrLoop|2)
	p.Out(regData, 'z')
	if p.out.Len() != 0 || p.In(regData) != 'z' || p.In(regMSR) != 1<<4 {
		t.Errorf("out %q, MSR %#x", &p.out, p.In(regMSR))
	}
}

func TestWritersWaitForRoom(t *testing.T) {
	p := open()
	done := make(chan int)
	go func() {
		n, _ := p.Write(make([]byte, queueSize+10))
		done <- n
	}()
	for read := 0; read < 20; {
		if p.In(regLSR)&lsrReady != 0 {
			p.In(regData)
			read++
		}
	}
	if n := <-done; n != queueSize+10 {
		t.Errorf("wrote %d", n)
	}
	go func() {
		n, _ := p.Write(make([]byte, 2*queueSize))
		done <- n
	}()
	p.Close()
	if n := <-done; n >= 2*queueSize {
		t.Errorf("a closed port took %d bytes", n)
	}
}

func TestStateComesBack(t *testing.T) {
	p := open()
	p.Out(regMCR, mcrOut2)
	p.Out(regIER, ierReceived)
	_, _ = p.Write([]byte("kept"))
	q := open()
	q.Restore(p.Save())
	if diff := cmp.Diff(p.Save(), q.Save()); diff != "" || !q.level || q.In(regData) != 'k' {
		t.Error(diff)
	}
}

func FuzzGuest(f *testing.F) {
	f.Add([]byte{0x81, 1, 0x80, 65, 3, 128})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := open()
		for i := 0; i+1 < len(ops); i += 2 {
			if ops[i]&0x80 != 0 {
				p.Out(uint16(ops[i]&0x7f), ops[i+1])
			} else {
				p.In(uint16(ops[i]))
			}
		}
		q := open()
		q.Restore(p.Save())
	})
}
