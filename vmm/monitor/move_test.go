package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/internal/tiny"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/migrate"
)

// counting is a guest that counts in memory, and says each number.
func counting() tiny.Code {
	var c tiny.Code
	c.Store32(scratch, 0)
	here := len(c)
	c.Increment(scratch)
	c.Copy8(serial, scratch)
	c.Store32(scratch+0x1000, 1) // other pages, the same each time
	c.Store32(scratch+0x5000, 2)
	c.Jump(here)
	return c
}

// station is a monitor that has a guest, or waits for one.
type station struct {
	*control.Client
	ended chan error
	end   chan vmm.End
	at    string // where a guest can come to
}

// newStation begins with a guest if there is a kernel.
func newStation(t *testing.T, kernel *os.File, said io.Writer) *station {
	t.Helper()
	at := filepath.Join(t.TempDir(), "in")
	s := openStation(t, said, func(c *Config) {
		if c.Kernel = kernel; kernel != nil {
			return
		}
		in, err := net.Listen("unix", at)
		if err != nil {
			t.Fatal(err)
		}
		c.Incoming = &Incoming{Listener: in.(migrate.Listener), Faults: faults(t)}
	})
	s.at = at
	return s
}

// openStation has a guest of which begin says where it comes from.
func openStation(t *testing.T, said io.Writer, begin func(*Config)) *station {
	t.Helper()
	dir := t.TempDir()
	s := &station{ended: make(chan error, 1), end: make(chan vmm.End, 1)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "c"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.OpenFile(filepath.Join(dir, "disk"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	c := Config{CPUs: 1, Memory: 16 << 20, Console: said, Control: l, Disks: []Disk{{Disk: control.Disk{Name: "d"}, File: disk}}}
	begin(&c)
	m, err := New(host(t), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		end, err := m.Run(ctx)
		s.end <- end
		s.ended <- err
	}()
	if s.Client, err = control.Dial(t.Context(), filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); s.Close() })
	return s
}

// faults is what a guest needs that runs before all of its memory is there.
func faults(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(memory.FaultDevice, os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// to are the files of connections to where a guest can come to.
func (s *station) to(t *testing.T, n int) (files []*os.File) {
	t.Helper()
	for range n {
		c, err := net.Dial("unix", s.at)
		if err != nil {
			t.Fatal(err)
		}
		f, err := c.(*net.UnixConn).File()
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	return files
}

// sequence is a console on which each number follows that before it.
type sequence struct {
	last chan byte // the newest, of which a reader takes what there is
	next byte
	bad  chan string
}

func newSequence() *sequence {
	return &sequence{last: make(chan byte, 1), next: 1, bad: make(chan string, 1)}
}

func (s *sequence) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != s.next {
			select {
			case s.bad <- fmt.Sprintf("the guest says %d instead of %d", b, s.next):
			default:
			}
		}
		s.next = b + 1
		select {
		case s.last <- b:
		default:
		}
	}
	return len(p), nil
}

// more waits until the guest has said several numbers more.
func (s *sequence) more(t *testing.T) {
	t.Helper()
	for range 20 {
		select {
		case <-s.last:
		case text := <-s.bad:
			t.Fatal(text)
		case <-time.After(2 * time.Minute):
			t.Fatal("the guest says nothing")
		}
	}
}

func TestAGuestMovesBackAndForth(t *testing.T) {
	moves := 6
	if n := os.Getenv("CLEAVE_TEST_MOVES"); n != "" {
		if _, err := fmt.Sscan(n, &moves); err != nil {
			t.Fatal(err)
		}
	}
	said := newSequence()
	at := newStation(t, kernel(t, counting()), said)
	var downtimes, totals []time.Duration
	for i := range moves {
		said.more(t)
		next := newStation(t, nil, said)
		m, err := at.Migrate(t.Context(), control.Migrate{}, next.to(t, 1+i%3))
		if err != nil || m.State != control.Gone {
			t.Fatalf("move %d: %+v, %v", i, m, err)
		}
		downtimes, totals = append(downtimes, m.Downtime), append(totals, m.Total)
		if end := <-at.end; end.Reason != vmm.Moved {
			t.Fatalf("the source ended by %+v", end)
		}
		if err := <-at.ended; err != nil {
			t.Fatal(err)
		}
		if s, err := next.Status(t.Context()); err != nil || s.State != "running" || !slices.Contains(s.Devices, "d") {
			t.Fatalf("%+v, %v", s, err)
		}
		at = next
	}
	said.more(t)
	slices.Sort(downtimes)
	slices.Sort(totals)
	t.Logf("%d moves: downtime min %s, median %s, max %s; total median %s", moves,
		downtimes[0], downtimes[moves/2], downtimes[moves-1], totals[moves/2])
}

func TestAGuestWhoseWayIsCutGoesOn(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	said := newSequence()
	at := newStation(t, kernel(t, counting()), said)
	outcomes := map[string]int{}
	for range 12 {
		said.more(t)
		next := newStation(t, nil, said)
		k := random.Int64N(80 << 10)
		files := []*os.File{cutAfter(t, next.to(t, 1)[0], k)}
		m, err := at.Migrate(t.Context(), control.Migrate{}, files)
		if err == nil { // the link was long enough
			outcomes[m.State]++
			at = next
			continue
		}
		now, e := at.Migration(t.Context())
		if e != nil {
			t.Fatal(e)
		}
		outcomes[now.State]++
		switch now.State {
		case control.Stayed:
		case control.Undecided:
			if e := at.Resume(t.Context()); e == nil {
				t.Fatal("a guest of which nobody knows where it is goes on")
			}
			if e := errors.Join(next.SettleMigration(t.Context(), control.Settle{}), at.SettleMigration(t.Context(), control.Settle{Here: true})); e != nil {
				t.Fatal(e)
			}
		default:
			t.Fatalf("behind %d bytes: %+v", k, now)
		}
		_ = next.CancelMigration(t.Context()) // one that heard no hello waits for another
		if err := <-next.ended; err == nil || strings.Contains(err.Error(), "panic") {
			t.Errorf("the destination ended by %v", err)
		}
	}
	said.more(t)
	t.Log(outcomes)
}

// cutAfter is the near end of a connection that a proxy cuts behind k bytes.
func cutAfter(t *testing.T, far *os.File, k int64) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mid, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	to, err := net.FileConn(far)
	if err != nil {
		t.Fatal(err)
	}
	far.Close()
	go func() {
		_, _ = io.CopyN(to, mid, k)
		to.Close()
		mid.Close()
	}()
	go func() { _, _ = io.Copy(mid, to) }()
	f, err := near.(*net.UnixConn).File()
	near.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

const walkingPages = 48

// walking is a guest that counts in many pages, and says each number, by the
// count of another page each time.
func walking() tiny.Code {
	const pages = walkingPages
	page := func(n int) uint32 { return uint32(scratch + n<<12) }
	var c tiny.Code
	for n := range pages {
		c.Store32(page(n), 0)
	}
	here := len(c)
	for said := range 4 {
		for n := range pages {
			c.Increment(page(n))
		}
		c.Copy8(serial, page(said*(pages-1)/3))
	}
	c.Jump(here)
	return c
}

// ahead are the moves of a guest that goes on before all of its memory is
// there.
var ahead = control.Migrate{PostCopy: true, Downtime: 1}

func TestAGuestGoesOnBeforeItsMemoryIsThere(t *testing.T) {
	said := newSequence()
	at := newStation(t, kernel(t, walking()), said)
	if faults(t) == nil {
		t.Skip("no " + memory.FaultDevice)
	}
	followed := 0
	for i := range 6 {
		said.more(t)
		next := newStation(t, nil, said)
		m, err := at.Migrate(t.Context(), ahead, next.to(t, 1+i%3))
		if m.Phase == control.Following {
			followed++ // unless it wrote nothing while it was copied
		}
		if err != nil || m.State != control.Gone {
			t.Fatalf("move %d: %+v, %v", i, m, err)
		}
		if end := <-at.end; end.Reason != vmm.Moved {
			t.Fatalf("the source ended by %+v", end)
		}
		said.more(t)
		if m, err := next.Migration(t.Context()); err != nil || m.State != control.Arrived || m.Left != 0 {
			t.Fatalf("%+v, %v", m, err)
		}
		at = next
	}
	if followed == 0 {
		t.Error("no memory ever followed its guest")
	}
}

// TestAGuestWhoseMemoryIsCutOffWaitsForIt cuts connections behind any number of
// bytes, until all of a guest is there.
func TestAGuestWhoseMemoryIsCutOffWaitsForIt(t *testing.T) {
	if faults(t) == nil {
		t.Skip("no " + memory.FaultDevice)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	said := newSequence()
	at := newStation(t, kernel(t, walking()), said)
	outcomes := map[string]int{}
	for range 12 {
		said.more(t)
		next := newStation(t, nil, said)
		how, what := ahead, "stayed"
		for {
			files := []*os.File{cutAfter(t, next.to(t, 1)[0], 40<<10+random.Int64N(600<<10))}
			m, err := at.Migrate(t.Context(), how, files)
			if err == nil {
				what = strings.TrimPrefix(what+", "+m.State, "stayed, ")
				break
			}
			now, e := at.Migration(t.Context())
			if e != nil || now.State != control.Interrupted && now.State != control.Stayed {
				t.Fatalf("%+v, %v: %v", now, e, err)
			}
			if now.State == control.Stayed {
				break
			}
			if e := at.Resume(t.Context()); e == nil {
				t.Fatal("a guest goes on that is elsewhere")
			}
			how, what = control.Migrate{Resume: true}, "interrupted"
		}
		outcomes[what]++
		if what == "stayed" {
			_ = next.CancelMigration(t.Context())
			<-next.ended
			continue
		}
		if err := <-at.ended; err != nil {
			t.Fatal(err)
		}
		at = next
	}
	said.more(t)
	t.Log(outcomes)
}
