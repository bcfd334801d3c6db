package e2e

import (
	"bufio"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm/control"
)

// save makes a snapshot in a new directory.
func (g *loadGuest) save(t *testing.T, dir string, o control.Save) string {
	t.Helper()
	to, err := os.MkdirTemp(dir, "snapshot")
	if err != nil {
		t.Fatal(err)
	}
	state, err := os.Create(filepath.Join(to, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	memory, err := os.Create(filepath.Join(to, "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	within(t, "save", func(ctx context.Context) error { return g.Save(ctx, o, state, memory) })
	return to
}

// clonesAreOthers makes guests of one that runs, up to ten, which are there at
// the same time. Each has a generation and random numbers of its own, and the
// name and address that it is given.
func clonesAreOthers(t *testing.T, g *loadGuest, dir, disk string) *loadGuest {
	begin := time.Now()
	from := g.save(t, dir, control.Save{})
	defer os.RemoveAll(from)
	t.Logf("saved in %s", time.Since(begin).Round(time.Millisecond))
	content, err := os.ReadFile(disk) // the guest doesn't use it now
	if err != nil {
		t.Fatal(err)
	}
	seen, first := map[string]int{}, map[string]int{}
	parent := g.ask(t, "who")
	for _, word := range parent {
		seen[word]++
	}
	for i := range min(stressed(3), 10) {
		own := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		if err := os.WriteFile(own, content, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(own)
		begin := time.Now()
		c := startLoad(t, dir, "--restore", from, "--disk", own+",queues=2", "--net", fmt.Sprintf("clone%d", i))
		defer c.kill(t)
		reached := time.Since(begin)
		who := c.ask(t, "who")
		answered := time.Since(begin)
		if who[2] == parent[2] {
			t.Errorf("clone %d is of its parent's generation", i)
		}
		first[who[3]]++
		how := c.become(t, i, seen)
		c.check(t)
		kib, _ := uses(t, c.cmd.Process.Pid)
		t.Logf("clone %d: monitor after %s, first answer after %s, random numbers by %s, %d KiB of its own",
			i, reached.Round(time.Millisecond), answered.Round(time.Millisecond), how, kib)
	}
	maps.DeleteFunc(seen, func(_ string, n int) bool { return n == 1 })
	if len(seen) > 0 {
		t.Errorf("several have %v", seen)
	}
	t.Logf("their first random numbers: %v", first)
	g.check(t)
	return g
}

// become makes a clone somebody, whose words it counts.
func (g *loadGuest) become(t *testing.T, i int, seen map[string]int) (how string) {
	t.Helper()
	var seed [32]byte
	_, _ = crand.Read(seed[:])
	name, address := fmt.Sprintf("clone-%d", i), fmt.Sprintf("02:00:00:00:97:%02x", i)
	who := g.ask(t, fmt.Sprintf("become %s %s %x", name, address, seed))
	if len(who) != 5 || who[1] != name || who[2] != address {
		t.Fatalf("clone %d is %v", i, who)
	}
	for _, word := range who[1:] {
		seen[word]++
	}
	return who[0]
}

// numbers are those that a guest says over a connection.
type numbers struct {
	last chan uint64 // the last one, when somebody asks
	end  chan error
	conn net.Conn
}

// listenToNumbers has the guest begin to write numbers to its disk and a
// connection.
func listenToNumbers(t *testing.T, g *loadGuest) *numbers {
	t.Helper()
	l, err := net.Listen("tcp", "10.98.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(stressPatience)); err != nil {
		t.Fatal(err)
	}
	g.ask(t, fmt.Sprintf("numbers /dev/vda %s", l.Addr()))
	n := &numbers{last: make(chan uint64, 1), end: make(chan error, 1)}
	if n.conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	go func() { n.end <- n.read() }()
	return n
}

// read tells of each number, if it is the one behind the last.
func (n *numbers) read() error {
	lines := bufio.NewScanner(n.conn)
	for i := uint64(1); lines.Scan(); i++ {
		if lines.Text() != strconv.FormatUint(i, 10) {
			return fmt.Errorf("the guest says %q instead of %d", lines.Text(), i)
		}
		select {
		case <-n.last:
		default:
		}
		n.last <- i
	}
	return errors.Join(errors.New("the connection ended"), lines.Err())
}

// more waits for further numbers and returns the last.
func (n *numbers) more(t *testing.T, count int) (last uint64) {
	t.Helper()
	deadline := time.After(stressPatience)
	for range count {
		select {
		case last = <-n.last:
		case err := <-n.end:
			t.Fatal(err)
		case <-deadline:
			t.Fatalf("the guest says no number behind %d", last)
		}
	}
	return last
}

// snapshotsGoOn saves a guest that runs, and what it changed until it is
// paused, kills it and has it go on from both, over and over: its numbers go
// on as if nothing had been. It returns the last one.
func snapshotsGoOn(t *testing.T, g *loadGuest, dir, disk string) *loadGuest {
	begin, cycles := time.Now(), stressed(5)
	said := listenToNumbers(t, g)
	defer said.conn.Close()
	old, last := "", uint64(0)
	for i := range cycles {
		full := g.save(t, dir, control.Save{Track: true})
		done := g.check(t)
		within(t, "pause", g.Pause)
		changes := g.save(t, dir, control.Save{Changes: true})
		g.kill(t)
		if old != "" {
			os.RemoveAll(old) // which the guest that was killed had mapped
		}
		old = full
		g = startLoad(t, dir, "--restore", full, "--restore", changes, "--disk", disk+",queues=2", "--net", "load0")
		if n := g.check(t); n < done {
			t.Fatalf("cycle %d: it had changed its memory %d times before it was saved, and %d when it went on", i, done, n)
		}
		last = said.more(t, 3) // the first may be from before
		os.RemoveAll(changes)
		if i%stressTold == 0 {
			t.Logf("saved and restored %d times in %s: number %d", i+1, time.Since(begin).Round(time.Second), last)
		}
	}
	within(t, "pause", g.Pause)
	checkNumbers(t, disk, last)
	within(t, "resume", g.Resume)
	g.check(t)
	t.Logf("%d cycles in %s, %d numbers", cycles, time.Since(begin).Round(time.Millisecond), last)
	return g
}

// checkNumbers looks for the last numbers on the disk, each at the place that
// the program load gives it.
func checkNumbers(t *testing.T, disk string, last uint64) {
	t.Helper()
	const firstSector, sectors = 16384, 16384
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	first := uint64(1)
	if last > sectors/2 { // those before may have been written over
		first = last - sectors/2
	}
	for i := first; i <= last; i++ {
		if got := binary.LittleEndian.Uint64(b[(firstSector+i%sectors)*512:]); got != i {
			t.Fatalf("on the disk is %d instead of %d", got, i)
		}
	}
}
