package virtio

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/vmm/memory"
)

// driver is the guest's side of a queue of eight.
type driver struct {
	t   testing.TB
	mem *memory.Memory
	Config
	avail uint16
}

const (
	ringSize = 8
	descAt   = 0x1000
	availAt  = 0x2000
	usedAt   = 0x3000
	dataAt   = 0x10000
)

func newDriver(t testing.TB, eventIndex bool) (*driver, *Queue) {
	t.Helper()
	m, err := memory.New(1<<20, memory.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	d := &driver{t: t, mem: m, Config: Config{Size: ringSize, Desc: descAt, Avail: availAt, Used: usedAt, EventIndex: eventIndex}}
	q, err := NewQueue(m, d.Config)
	if err != nil {
		t.Fatal(err)
	}
	return d, q
}

func (d *driver) bytes(addr, n uint64) []byte {
	b, err := d.mem.Slice(addr, n)
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

func (d *driver) desc(table uint64, i int, addr uint64, size uint32, flags, next uint16) {
	b := d.bytes(table+16*uint64(i), 16)
	le := binary.LittleEndian
	le.PutUint64(b, addr)
	le.PutUint32(b[8:], size)
	le.PutUint16(b[12:], flags)
	le.PutUint16(b[14:], next)
}

// offer makes a chain available.
func (d *driver) offer(head uint16) {
	b := d.bytes(availAt, 4+2*ringSize)
	binary.LittleEndian.PutUint16(b[4+2*int(d.avail%ringSize):], head)
	d.avail++
	binary.LittleEndian.PutUint16(b[2:], d.avail)
}

func TestRequestsComeAndGoBack(t *testing.T) {
	d, q := newDriver(t, false)
	if c, err := q.Next(); c != nil || err != nil {
		t.Fatalf("an empty queue has %+v, %v", c, err)
	}
	for round := range uint16(3 * ringSize) { // around the ring
		copy(d.bytes(dataAt, 4), "ask!")
		d.desc(descAt, 3, dataAt, 4, descNext, 5)
		d.desc(descAt, 5, dataAt+0x100, 8, descWrite, 0)
		d.offer(3)
		if !q.Pending() {
			t.Fatal("nothing is pending")
		}
		c, err := q.Next()
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Readable) != 1 || string(c.Readable[0]) != "ask!" || Length(c.Writable) != 8 {
			t.Fatalf("got %q, %d bytes to write", c.Readable, Length(c.Writable))
		}
		copy(c.Writable[0], "answer")
		q.Done(c, 6)
		used := d.bytes(usedAt, 4+8*ringSize)
		le := binary.LittleEndian
		if e := used[4+8*int(round%ringSize):]; le.Uint16(used[2:]) != round+1 || le.Uint32(e) != 3 || le.Uint32(e[4:]) != 6 {
			t.Fatalf("used ring % x", used)
		}
		if string(d.bytes(dataAt+0x100, 6)) != "answer" {
			t.Fatal("the answer didn't arrive")
		}
	}
}

func TestIndirectTablesAreFollowed(t *testing.T) {
	d, q := newDriver(t, false)
	const table = 0x8000
	for i := range 20 { // more than the queue itself has
		d.desc(table, i, dataAt+uint64(i), 1, descNext, uint16(i+1))
	}
	d.desc(table, 20, dataAt+0x100, 16, descWrite, 0)
	d.desc(descAt, 0, table, 21*16, descIndirect, 0)
	d.offer(0)
	c, err := q.Next()
	if err != nil || len(c.Readable) != 20 || len(c.Writable) != 1 {
		t.Fatalf("got %+v, %v", c, err)
	}
}

func TestBrokenQueuesAreRefused(t *testing.T) {
	const table = 0x8000
	for name, c := range map[string]struct {
		fill func(d *driver)
		want string
	}{
		"circle":        {func(d *driver) { d.desc(descAt, 0, dataAt, 1, descNext, 0) }, "more than 8"},
		"circle of two": {func(d *driver) { d.desc(descAt, 0, dataAt, 1, descNext, 1); d.desc(descAt, 1, dataAt, 1, descNext, 0) }, "more than 8"},
		"head":          {func(d *driver) { d.offer(ringSize); d.avail = 1 }, "descriptor 8 of 8"},
		"next":          {func(d *driver) { d.desc(descAt, 0, dataAt, 1, descNext, 60000) }, "descriptor 60000"},
		"outside":       {func(d *driver) { d.desc(descAt, 0, 1<<40, 1, 0, 0) }, "outside"},
		"over the end":  {func(d *driver) { d.desc(descAt, 0, 1<<20-4, 8, 0, 0) }, "outside"},
		"around":        {func(d *driver) { d.desc(descAt, 0, ^uint64(0)-3, 8, 0, 0) }, "outside"},
		"readable last": {func(d *driver) {
			d.desc(descAt, 0, dataAt, 1, descNext|descWrite, 1)
			d.desc(descAt, 1, dataAt, 1, 0, 0)
		}, "behind a writable"},
		"indirect twice": {func(d *driver) {
			d.desc(descAt, 0, table, 16, descIndirect, 0)
			d.desc(table, 0, table, 16, descIndirect, 0)
		}, "within a chain"},
		"indirect in chain": {func(d *driver) {
			d.desc(descAt, 0, dataAt, 1, descNext, 1)
			d.desc(descAt, 1, table, 16, descIndirect, 0)
		}, "within a chain"},
		"indirect and next":   {func(d *driver) { d.desc(descAt, 0, table, 16, descIndirect|descNext, 1) }, "within a chain"},
		"indirect of nothing": {func(d *driver) { d.desc(descAt, 0, table, 0, descIndirect, 0) }, "of 0 bytes"},
		"indirect and a half": {func(d *driver) { d.desc(descAt, 0, table, 24, descIndirect, 0) }, "of 24 bytes"},
		"indirect too large":  {func(d *driver) { d.desc(descAt, 0, 0, 1<<20, descIndirect, 0) }, "indirect table of"},
		"indirect circle": {func(d *driver) {
			d.desc(descAt, 0, table, 32, descIndirect, 0)
			d.desc(table, 0, dataAt, 1, descNext, 0)
		}, "more than 2"},
		"too many": {func(d *driver) { d.avail = 2 * ringSize }, "requests in a queue"},
	} {
		d, q := newDriver(t, false)
		c.fill(d)
		if d.avail == 0 || d.avail > 1 {
			d.offer(0)
		}
		if got, err := q.Next(); !errors.Is(err, ErrQueue) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

func TestQueuesLieInMemory(t *testing.T) {
	d, _ := newDriver(t, false)
	for name, change := range map[string]func(*Config){
		"no size":       func(c *Config) { c.Size = 0 },
		"size":          func(c *Config) { c.Size = 7 },
		"desc align":    func(c *Config) { c.Desc = descAt + 8 },
		"avail align":   func(c *Config) { c.Avail = availAt + 1 },
		"used align":    func(c *Config) { c.Used = usedAt + 2 },
		"desc outside":  func(c *Config) { c.Desc = 1<<20 - 64 },
		"avail outside": func(c *Config) { c.Avail = 1<<20 - 2 },
		"used outside":  func(c *Config) { c.Used = 1 << 50 },
	} {
		c := d.Config
		change(&c)
		if _, err := NewQueue(d.mem, c); !errors.Is(err, ErrQueue) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// done gives n requests back.
func done(t *testing.T, d *driver, q *Queue, n int) {
	t.Helper()
	for range n {
		d.desc(descAt, 0, dataAt, 1, 0, 0)
		d.offer(0)
		c, err := q.Next()
		if err != nil || c == nil {
			t.Fatalf("got %+v, %v", c, err)
		}
		q.Done(c, 0)
	}
}

func TestInterruptsAreSuppressed(t *testing.T) {
	d, q := newDriver(t, false)
	done(t, d, q, 1)
	if !q.Interrupt() {
		t.Error("no interrupt although the guest wants them")
	}
	d.bytes(availAt, 2)[0] = availNoInterrupt
	if q.Interrupt() {
		t.Error("an interrupt although the guest doesn't want them")
	}

	d, q = newDriver(t, true)
	event := d.bytes(availAt+4+2*ringSize, 2)
	done(t, d, q, 1)
	if !q.Interrupt() {
		t.Error("no interrupt for the first")
	}
	binary.LittleEndian.PutUint16(event, 3) // tell when the fourth is given back
	done(t, d, q, 2)
	if q.Interrupt() {
		t.Error("an interrupt before the fourth")
	}
	done(t, d, q, 1)
	if !q.Interrupt() {
		t.Error("no interrupt for the fourth")
	}
	if q.Interrupt() {
		t.Error("an interrupt for nothing")
	}
}

func TestNotificationsAreSuppressed(t *testing.T) {
	d, q := newDriver(t, false)
	q.Notify(false)
	if d.bytes(usedAt, 2)[0] != usedNoNotify {
		t.Error("the guest isn't told to be quiet")
	}
	q.Notify(true)
	if d.bytes(usedAt, 2)[0] != 0 {
		t.Error("the guest isn't told to speak")
	}
	d, q = newDriver(t, true)
	done(t, d, q, 2)
	q.Notify(true)
	if got := binary.LittleEndian.Uint16(d.bytes(usedAt+4+8*ringSize, 2)); got != 2 {
		t.Errorf("avail_event is %d", got)
	}
}

func TestStateGoesOn(t *testing.T) {
	d, q := newDriver(t, true)
	done(t, d, q, 5)
	q.Interrupt()
	r, err := RestoreQueue(d.mem, q.Save())
	if err != nil {
		t.Fatal(err)
	}
	done(t, d, r, 5)
	if got := binary.LittleEndian.Uint16(d.bytes(usedAt+2, 2)); got != 10 {
		t.Errorf("%d were given back", got)
	}
}

// FuzzQueue fills tables with anything and takes what comes.
func FuzzQueue(f *testing.F) {
	f.Add([]byte{1, 0, 1, 0}, []byte{0, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0, 0, 1, 0, 0, 0}, []byte{0, 0x80, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 4, 0, 0, 0})
	m, err := memory.New(1<<20, memory.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { m.Close() })
	f.Fuzz(func(t *testing.T, avail, desc []byte) {
		d := &driver{t: t, mem: m}
		copy(d.bytes(availAt, 6+2*ringSize), avail)
		copy(d.bytes(descAt, 16*ringSize), desc)
		copy(d.bytes(0x8000, 4096), desc)
		q, err := NewQueue(m, Config{Size: ringSize, Desc: descAt, Avail: availAt, Used: usedAt})
		if err != nil {
			t.Fatal(err)
		}
		for range ringSize {
			c, err := q.Next()
			if c == nil || err != nil {
				return
			}
			if len(c.Readable)+len(c.Writable) > maxChain {
				t.Errorf("%d pieces", len(c.Readable)+len(c.Writable))
			}
			q.Done(c, uint32(Length(c.Writable)))
			q.Interrupt()
		}
	})
}

func BenchmarkNextDone(b *testing.B) {
	d, q := newDriver(b, true)
	d.desc(descAt, 0, dataAt, 16, descNext, 1)
	d.desc(descAt, 1, dataAt+0x100, 4096, descNext|descWrite, 2)
	d.desc(descAt, 2, dataAt+0x2000, 1, descWrite, 0)
	b.ReportAllocs()
	for b.Loop() {
		d.offer(0)
		c, err := q.Next()
		if err != nil {
			b.Fatal(err)
		}
		q.Done(c, 4097)
	}
}
