package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// card is a host's side of a port.
type card struct {
	t    *testing.T
	name string
	mac  byte
	conn net.Conn
	got  chan string
}

var everybody = byte(0xff)

func plug(t *testing.T, s *Switch, name string, mac byte) *card {
	t.Helper()
	ours, theirs := net.Pipe()
	var served sync.WaitGroup
	served.Go(func() { s.Serve(name, theirs) })
	c := &card{t: t, name: name, mac: mac, conn: ours, got: make(chan string, 100)}
	served.Go(func() {
		defer close(c.got)
		for {
			var size uint32
			if binary.Read(ours, binary.BigEndian, &size) != nil {
				return
			}
			b := make([]byte, size)
			if _, err := io.ReadFull(ours, b); err != nil {
				return
			}
			c.got <- string(b[14:])
		}
	})
	t.Cleanup(func() {
		ours.Close()
		served.Wait()
	})
	// The port is there when what it sends is forwarded: a frame too short
	// for that is read at least.
	c.raw(nil)
	return c
}

func (c *card) raw(b []byte) {
	c.t.Helper()
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	if _, err := c.conn.Write(append(frame, b...)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *card) send(to byte, text string) {
	c.t.Helper()
	b := append([]byte{2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, c.mac, 8, 0}, text...)
	if to == everybody {
		copy(b, []byte{255, 255, 255, 255, 255, 255})
	}
	c.raw(b)
}

// wants takes what has come so far, in order. A frame that must not come is
// one that a later one overtook: within a direction order is kept.
func (c *card) wants(texts ...string) {
	c.t.Helper()
	var got []string
	for range texts {
		select {
		case text := <-c.got:
			got = append(got, text)
		case <-time.After(time.Minute):
			c.t.Fatalf("%s got %q and no more of %q", c.name, got, texts)
		}
	}
	if diff := cmp.Diff(texts, got); diff != "" {
		c.t.Errorf("%s got others (-want +got):\n%s", c.name, diff)
	}
}

func TestFramesGoWhereTheirAddressIs(t *testing.T) {
	s := New()
	a, b, c := plug(t, s, "a", 1), plug(t, s, "b", 2), plug(t, s, "c", 3)
	a.send(2, "nobody knows b") // flooded
	b.wants("nobody knows b")
	c.wants("nobody knows b")
	b.send(1, "to a")
	a.wants("to a")
	a.send(2, "to b alone")
	a.send(everybody, "to all")
	b.wants("to b alone", "to all")
	c.wants("to all")
	// An address moves with who has it.
	c.mac = 2
	c.send(1, "here is b now")
	a.wants("here is b now")
	a.send(2, "to the new b")
	c.wants("to the new b")
	a.send(everybody, "again")
	b.wants("again")
}

func TestRulesAreForOneDirectionBetweenTwo(t *testing.T) {
	s := New()
	a, b, c := plug(t, s, "a", 1), plug(t, s, "b", 2), plug(t, s, "c", 3)
	set := func(r Rule) {
		t.Helper()
		if err := s.Set("a", "b", r); err != nil {
			t.Fatal(err)
		}
	}
	set(Rule{Cut: true})
	a.send(everybody, "1")
	c.wants("1")
	b.send(everybody, "back")
	a.wants("back")
	c.wants("back")
	set(Rule{Drop: 1})
	a.send(everybody, "2")
	c.wants("2")
	set(Rule{})
	a.send(everybody, "3")
	b.wants("3")
	c.wants("3")
	if diff := cmp.Diff(Counters{Passed: 1, Lost: 2}, s.Counters("a", "b")); diff != "" {
		t.Error(diff)
	}
}

func TestSomeFramesAreLost(t *testing.T) {
	s := New()
	a, b := plug(t, s, "a", 1), plug(t, s, "b", 2)
	if err := s.Set("a", "b", Rule{Drop: 0.5}); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range b.got { // as they come, or the queue overflows
		}
	}()
	for range 1000 {
		a.send(2, "x")
	}
	a.raw(nil) // read after those before it were counted
	if n := s.Counters("a", "b"); n.Passed < 300 || n.Passed > 700 {
		t.Errorf("of 1000 frames half should be lost: %+v", n)
	}
}

func TestDelayKeepsOrderAndIsKept(t *testing.T) {
	s := New()
	a, b := plug(t, s, "a", 1), plug(t, s, "b", 2)
	const delay = 100 * time.Millisecond
	if err := s.Set("a", "b", Rule{Delay: delay}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	a.send(2, "1")
	a.send(2, "2")
	a.raw(nil)
	if err := s.Set("a", "b", Rule{}); err != nil {
		t.Fatal(err)
	}
	a.send(2, "3")
	b.wants("1", "2", "3")
	if d := time.Since(begin); d < delay {
		t.Errorf("it took %s", d)
	}
}

func TestOneWhoReadsNothingHoldsUpNobody(t *testing.T) {
	s := New()
	a, c := plug(t, s, "a", 1), plug(t, s, "c", 3)
	ours, theirs := net.Pipe()
	var served sync.WaitGroup
	served.Go(func() { s.Serve("deaf", theirs) })
	defer served.Wait()
	defer ours.Close()
	if _, err := ours.Write(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxQueue {
		a.send(everybody, fmt.Sprint(i))
		c.wants(fmt.Sprint(i))
	}
	if n := s.Counters("a", "deaf"); n.Lost == 0 {
		t.Error("nothing was lost")
	}
}

func TestPortOfThatNameIsReplaced(t *testing.T) {
	s := New()
	a := plug(t, s, "a", 1)
	old := plug(t, s, "b", 2)
	b := plug(t, s, "b", 2)
	if _, open := <-old.got; open {
		t.Error("the port of the host before got a frame")
	}
	a.send(everybody, "to the new one")
	b.wants("to the new one")
}

func TestWrongRulesAreRefused(t *testing.T) {
	s := New()
	for _, r := range []Rule{{Delay: -1}, {Delay: time.Hour}, {Drop: -0.1}, {Drop: 1.1}} {
		if s.Set("a", "b", r) == nil {
			t.Errorf("%+v was taken", r)
		}
	}
}

// FuzzPort: a port that sends anything ends at worst itself.
func FuzzPort(f *testing.F) {
	f.Add([]byte{0, 0, 0, 14, 255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 0})
	f.Add([]byte{255, 255, 255, 255, 0})
	f.Add([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		s := New()
		a, b := plug(t, s, "a", 1), plug(t, s, "b", 2)
		wild, theirs := net.Pipe()
		served := make(chan struct{})
		go func() {
			defer close(served)
			s.Serve("wild", theirs)
		}()
		_, _ = wild.Write(in)
		wild.Close()
		<-served
		a.send(everybody, "still there")
		for text := range b.got {
			if text == "still there" {
				return
			}
		}
		t.Error("the switch has ended")
	})
}
