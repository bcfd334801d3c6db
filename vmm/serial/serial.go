// Package serial is a 16550A UART (National Semiconductor PC16550D), as the
// kernel's 8250 driver wants it: transmission is immediate, reception has a
// FIFO of 16 bytes fed from a queue that the host fills as far as there is room.
package serial

import (
	"io"
	"sync"
)

// Registers, by offset from the base port.
const (
	regData    = 0 // RBR and THR; divisor low with DLAB
	regIER     = 1 // divisor high with DLAB
	regIIR     = 2 // FCR when written
	regLCR     = 3
	regMCR     = 4
	regLSR     = 5
	regMSR     = 6
	regScratch = 7

	// Ports is how many ports it takes.
	Ports = 8
)

const (
	ierReceived    = 1 << 0
	ierTransmitted = 1 << 1

	iirNone        = 1
	iirTransmitted = 2
	iirReceived    = 4
	iirFIFO        = 0xc0

	fcrEnable = 1 << 0
	fcrClear  = 1 << 1

	lcrDLAB = 1 << 7

	mcrLoop = 1 << 4
	mcrOut2 = 1 << 3 // gates the interrupt on a PC

	lsrReady       = 1 << 0
	lsrTransmitted = 1<<5 | 1<<6

	msrConnected = 1<<4 | 1<<5 | 1<<7 // CTS, DSR, DCD
)

// queueSize is how much the host may be ahead of the guest.
const queueSize = 4096

// UART is one port.
type UART struct {
	out io.Writer
	irq func(level bool)

	mu                          sync.Mutex
	room                        *sync.Cond // in queue
	queue                       []byte
	ier, fcr, lcr, mcr, scratch byte
	divisor                     uint16
	thre                        bool // an interrupt for an empty transmitter is due
	level                       bool
	closed                      bool
}

// New returns a UART that sends to out, which must not block for long, and
// sets its interrupt line by irq.
func New(out io.Writer, irq func(level bool)) *UART {
	u := &UART{out: out, irq: irq, divisor: 1}
	u.room = sync.NewCond(&u.mu)
	return u
}

// Write is for the host: it hands the guest what it shall receive, and
// blocks while the guest doesn't read.
func (u *UART) Write(p []byte) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n := 0; n < len(p); {
		for len(u.queue) == queueSize && !u.closed {
			u.room.Wait()
		}
		if u.closed {
			return n, io.ErrClosedPipe
		}
		k := min(len(p)-n, queueSize-len(u.queue))
		u.queue = append(u.queue, p[n:n+k]...)
		n += k
		u.update()
	}
	return len(p), nil
}

// Close ends Writes that wait.
func (u *UART) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	u.room.Broadcast()
	return nil
}

// In is a read of the guest from a port of it.
func (u *UART) In(offset uint16) byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch offset {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			return byte(u.divisor)
		}
		return u.receive()
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			return byte(u.divisor >> 8)
		}
		return u.ier
	case regIIR:
		return u.identify()
	case regLCR:
		return u.lcr
	case regMCR:
		return u.mcr
	case regLSR:
		if len(u.queue) > 0 {
			return lsrTransmitted | lsrReady
		}
		return lsrTransmitted
	case regMSR:
		return u.modem()
	case regScratch:
		return u.scratch
	}
	return 0xff
}

// Out is a write of the guest to a port of it.
func (u *UART) Out(offset uint16, v byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch offset {
	case regData:
		if u.lcr&lcrDLAB != 0 {
			u.divisor = u.divisor&0xff00 | uint16(v)
			return
		}
		u.transmit(v)
	case regIER:
		if u.lcr&lcrDLAB != 0 {
			u.divisor = u.divisor&0xff | uint16(v)<<8
			return
		}
		if v&ierTransmitted != 0 && u.ier&ierTransmitted == 0 {
			u.thre = true // enabling it with an empty transmitter raises it
		}
		u.ier = v & 0x0f
	case regIIR:
		u.fcr = v
		if v&fcrClear != 0 {
			u.queue = u.queue[:0]
			u.room.Broadcast()
		}
	case regLCR:
		u.lcr = v
	case regMCR:
		u.mcr = v & 0x1f
	case regScratch:
		u.scratch = v
	}
	u.update()
}

func (u *UART) receive() byte {
	if len(u.queue) == 0 {
		return 0
	}
	b := u.queue[0]
	u.queue = append(u.queue[:0], u.queue[1:]...)
	u.room.Broadcast()
	u.update()
	return b
}

func (u *UART) transmit(v byte) {
	if u.mcr&mcrLoop != 0 {
		if len(u.queue) < queueSize {
			u.queue = append(u.queue, v)
		}
	} else {
		_, _ = u.out.Write([]byte{v}) // a line that nobody reads loses what is sent
	}
	u.thre = true
}

// identify is a read of IIR, which takes a transmitter's interrupt back.
func (u *UART) identify() byte {
	id := byte(iirNone)
	switch {
	case u.ier&ierReceived != 0 && len(u.queue) > 0:
		id = iirReceived
	case u.ier&ierTransmitted != 0 && u.thre:
		id = iirTransmitted
		u.thre = false
		u.update()
	}
	if u.fcr&fcrEnable != 0 {
		id |= iirFIFO
	}
	return id
}

// modem is MSR; in loopback it shows MCR's outputs (PC16550D, 8.6.7).
func (u *UART) modem() byte {
	if u.mcr&mcrLoop == 0 {
		return msrConnected
	}
	return u.mcr&1<<5 | u.mcr&2<<3 | u.mcr&4<<4 | u.mcr&8<<4
}

// update sets the interrupt line.
func (u *UART) update() {
	level := u.ier&ierReceived != 0 && len(u.queue) > 0 || u.ier&ierTransmitted != 0 && u.thre
	if level = level && u.mcr&mcrOut2 != 0; level != u.level {
		u.level = level
		u.irq(level)
	}
}

// State is what is saved of it. Version 1.
type State struct {
	Queue                       []byte
	IER, FCR, LCR, MCR, Scratch byte
	Divisor                     uint16
	THRE                        bool
}

// Save returns its state.
func (u *UART) Save() State {
	u.mu.Lock()
	defer u.mu.Unlock()
	return State{append([]byte(nil), u.queue...), u.ier, u.fcr, u.lcr, u.mcr, u.scratch, u.divisor, u.thre}
}

// Restore puts it into a state, whatever it was in.
func (u *UART) Restore(s State) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.queue = append(u.queue[:0], s.Queue[:min(len(s.Queue), queueSize)]...)
	u.ier, u.fcr, u.lcr, u.mcr, u.scratch, u.divisor, u.thre = s.IER&0x0f, s.FCR, s.LCR, s.MCR&0x1f, s.Scratch, s.Divisor, s.THRE
	u.update()
}
