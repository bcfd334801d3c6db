package blk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/ratelimit"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

const diskSize = 8 << 20

func openDisk(t testing.TB, size int64, flags int) (*blk.File, *os.File) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "disk"), os.O_RDWR|os.O_CREATE|flags, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	d, err := blk.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return d, f
}

func newDevice(t testing.TB, disk blk.Disk, o blk.Options) *blk.Device {
	t.Helper()
	d, err := blk.New(disk, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// plug starts a guest with all features that the device has.
func plug(t testing.TB, d *blk.Device) *virtiotest.Guest {
	t.Helper()
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	return g
}

const (
	typeIn, typeOut, typeFlush, typeGetID = 0, 1, 4, 8
	typeDiscard, typeWriteZeroes          = 11, 13
	statusOK, statusIOError, statusUnsupp = 0, 1, 2
)

func header(kind uint32, sector uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint64(b, sector)
}

func read(q *virtiotest.Queue, sector uint64, n int) ([]byte, byte) {
	r := q.Do([][]byte{header(typeIn, sector)}, n, 1)
	defer q.Free(r)
	return bytes.Clone(r.Writable[0]), r.Writable[1][0]
}

func write(q *virtiotest.Queue, sector uint64, data []byte) byte {
	r := q.Do([][]byte{header(typeOut, sector), data}, 1)
	defer q.Free(r)
	return r.Writable[0][0]
}

func flush(q *virtiotest.Queue) byte {
	r := q.Do([][]byte{header(typeFlush, 0)}, 1)
	defer q.Free(r)
	return r.Writable[0][0]
}

// erase discards, or writes zeroes to, ranges of sector, number and flags.
func erase(q *virtiotest.Queue, kind uint32, ranges ...[3]uint64) byte {
	var b []byte
	for _, r := range ranges {
		b = binary.LittleEndian.AppendUint64(b, r[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(r[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(r[2]))
	}
	r := q.Do([][]byte{header(kind, 0), b}, 1)
	defer q.Free(r)
	return r.Writable[0][0]
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) + byte(i>>8) + seed
	}
	return b
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	for name, c := range map[string]struct {
		flags    int
		indirect bool
	}{
		"cached":   {0, false},
		"indirect": {0, true},
		"direct":   {unix.O_DIRECT, true},
	} {
		t.Run(name, func(t *testing.T) {
			disk, f := openDisk(t, diskSize, c.flags)
			d := newDevice(t, disk, blk.Options{})
			g := plug(t, d)
			q := g.Queues[0]
			q.Indirect = c.indirect
			for i, n := range []int{4096, 8192, 128 << 10, 1 << 20} {
				want := pattern(n, byte(i))
				if s := write(q, 8, want); s != statusOK {
					t.Fatalf("a write of %d bytes: status %d, %v", n, s, d.Metrics().LastError)
				}
				if s := flush(q); s != statusOK {
					t.Fatalf("flush: status %d", s)
				}
				if got, s := read(q, 8, n); s != statusOK || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes aren't what was written, status %d", n, s)
				}
				onDisk := make([]byte, n)
				if _, err := unix.Pread(int(f.Fd()), onDisk, 4096); err == nil && !bytes.Equal(onDisk, want) {
					t.Fatal("the file has something else")
				}
			}
			if m := d.Metrics(); m.Write.Requests != 4 || m.Read.Bytes != 4096+8192+128<<10+1<<20 || m.Flush.Requests != 4 || m.Read.Time == 0 {
				t.Errorf("metrics %+v", m)
			}
		})
	}
}

func TestRequestsMayBeCutAnywhere(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	q := plug(t, newDevice(t, disk, blk.Options{})).Queues[0]
	data := pattern(1024, 3)
	h := append(header(typeOut, 5), data...)
	r := q.Do([][]byte{h[:3], h[3:17], h[17:600], h[600:]}, 1)
	if r.Writable[0][0] != statusOK || r.Written != 1 {
		t.Fatalf("status %d, %d written", r.Writable[0][0], r.Written)
	}
	r = q.Do([][]byte{header(typeIn, 5)}, 100, 400, 525) // status at the end of the data
	got := bytes.Join(r.Writable, nil)
	if got[1024] != statusOK || r.Written != 1025 || !bytes.Equal(got[:1024], data) {
		t.Fatalf("status %d, %d written", got[1024], r.Written)
	}
}

func TestTheDriverIsToldWhatTheDiskIs(t *testing.T) {
	disk, f := openDisk(t, diskSize, 0)
	d := newDevice(t, disk, blk.Options{Serial: "a serial number of20", Queues: 4})
	g := plug(t, d)
	for name, c := range map[string][3]uint64{
		"capacity":   {0, 8, diskSize / 512},
		"seg_max":    {12, 4, 254},
		"blk_size":   {20, 4, 512},
		"exponent":   {24, 1, 3},
		"writeback":  {32, 1, 1},
		"num_queues": {34, 2, 4},
		"discards":   {40, 4, 32},
		"beyond":     {100, 8, 0},
	} {
		if got := g.Config(c[0], int(c[1])); got != c[2] {
			t.Errorf("%s is %d instead of %d", name, got, c[2])
		}
	}
	for _, q := range g.Queues {
		r := q.Do([][]byte{header(typeGetID, 0)}, 20, 1)
		if string(r.Writable[0]) != "a serial number of20" || r.Writable[1][0] != statusOK || r.Written != 21 {
			t.Errorf("serial number %q, status %d", r.Writable[0], r.Writable[1][0])
		}
	}
	if _, s := read(g.Queues[0], diskSize/512, 512); s != statusIOError {
		t.Errorf("a read behind the end has status %d", s)
	}
	if err := errors.Join(f.Truncate(2*diskSize), d.Resized()); err != nil {
		t.Fatal(err)
	}
	g.ConfigChanged()
	if got := g.Config(0, 8); got != 2*diskSize/512 {
		t.Errorf("it grew to %d sectors", got)
	}
	if _, s := read(g.Queues[0], diskSize/512, 512); s != statusOK {
		t.Errorf("what was added has status %d", s)
	}
}

func TestRangesAreErased(t *testing.T) {
	disk, f := openDisk(t, diskSize, 0)
	d := newDevice(t, disk, blk.Options{})
	g := plug(t, d)
	q := g.Queues[0]
	want := pattern(diskSize/2, 1)
	if s := write(q, 0, want); s != statusOK {
		t.Fatalf("status %d", s)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	full := blocks(t, f)
	for _, c := range []struct {
		kind    uint32
		from, n uint64
		flags   uint64
	}{{typeWriteZeroes, 0, 8, 0}, {typeWriteZeroes, 16, 1024, 1}, {typeDiscard, 2048, 2048, 0}, {typeWriteZeroes, 4099, 3, 0}} {
		if s := erase(q, c.kind, [3]uint64{c.from, c.n, c.flags}, [3]uint64{0, 0, 0}); s != statusOK {
			t.Errorf("%+v: status %d, %v", c, s, d.Metrics().LastError)
		}
		clear(want[c.from*512 : (c.from+c.n)*512])
	}
	if got, s := read(q, 0, len(want)); s != statusOK || !bytes.Equal(got, want) {
		t.Errorf("status %d, or not what should be left", s)
	}
	if now := blocks(t, f); now >= full {
		t.Errorf("%d blocks before, %d after what was discarded", full, now)
	}
	for name, c := range map[string]struct {
		kind uint32
		r    [3]uint64
		want byte
	}{
		"outside":       {typeDiscard, [3]uint64{diskSize / 512, 1, 0}, statusIOError},
		"around":        {typeWriteZeroes, [3]uint64{1<<64 - 1, 2, 0}, statusIOError},
		"too much":      {typeDiscard, [3]uint64{0, 1<<32 - 1, 0}, statusIOError},
		"unmap":         {typeDiscard, [3]uint64{0, 8, 1}, statusUnsupp},
		"unknown flags": {typeWriteZeroes, [3]uint64{0, 8, 2}, statusUnsupp},
	} {
		if s := erase(q, c.kind, [3]uint64{0, 8, 0}, c.r); s != c.want {
			t.Errorf("%s: status %d", name, s)
		}
	}
	if s := erase(q, typeDiscard, make([][3]uint64, 33)...); s != statusIOError {
		t.Errorf("too many ranges: status %d", s)
	}
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks
}

func TestAReadOnlyDiskStays(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	g := plug(t, newDevice(t, disk, blk.Options{ReadOnly: true}))
	if g.Offered()&blk.FeatureReadOnly == 0 || g.Offered()&blk.FeatureDiscard != 0 {
		t.Errorf("features %#x", g.Offered())
	}
	q := g.Queues[0]
	for name, s := range map[string]byte{"write": write(q, 0, pattern(512, 9)), "zeroes": erase(q, typeWriteZeroes, [3]uint64{0, 8, 0}), "discard": erase(q, typeDiscard, [3]uint64{0, 8, 0})} {
		if s != statusIOError {
			t.Errorf("%s: status %d", name, s)
		}
	}
	if got, s := read(q, 0, 512); s != statusOK || !bytes.Equal(got, make([]byte, 512)) {
		t.Errorf("status %d", s)
	}
}

func TestRequestsThatCanNotBeAreRefused(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	g := plug(t, newDevice(t, disk, blk.Options{}))
	q := g.Queues[0]
	for name, c := range map[string]struct {
		kind   uint32
		sector uint64
		n      int
		want   byte
	}{
		"behind the end":   {typeIn, diskSize/512 - 1, 1024, statusIOError},
		"around":           {typeIn, 1<<64 - 1, 1024, statusIOError},
		"half a sector":    {typeIn, 0, 700, statusIOError},
		"secure erase":     {14, 0, 512, statusUnsupp},
		"lifetime":         {10, 0, 6, statusUnsupp},
		"unknown":          {77, 0, 512, statusUnsupp},
		"short serial":     {typeGetID, 0, 3, statusIOError},
		"nothing to erase": {typeDiscard, 0, 512, statusIOError},
	} {
		r := q.Do([][]byte{header(c.kind, c.sector)}, c.n, 1)
		if s := r.Writable[1][0]; s != c.want {
			t.Errorf("%s: status %d", name, s)
		}
	}
}

func TestRequestsThatCanNotBeAnsweredStopTheDevice(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	g := virtiotest.Plug(t, newDevice(t, disk, blk.Options{}))
	for name, fill := range map[string]func(q *virtiotest.Queue) *virtiotest.Request{
		"no status":    func(q *virtiotest.Queue) *virtiotest.Request { return q.Make([][]byte{header(typeIn, 0)}) },
		"no header":    func(q *virtiotest.Queue) *virtiotest.Request { return q.Make(nil, 512, 1) },
		"short header": func(q *virtiotest.Queue) *virtiotest.Request { return q.Make([][]byte{header(typeIn, 0)[:15]}, 1) },
	} {
		g.Start(g.Offered())
		q := g.Queues[0]
		q.Add(fill(q))
		q.Kick()
		g.Failed()
		if n := q.Reap(); n != 0 {
			t.Errorf("%s: it was given back", name)
		}
	}
	g.Start(g.Offered()) // and a reset brings it back
	if s := flush(g.Queues[0]); s != statusOK {
		t.Errorf("status %d", s)
	}
}

// faulty is a disk that fails, or hangs until it is let go.
type faulty struct {
	blk.Disk
	err     error
	flushes atomic.Int64
	hold    chan struct{}
}

func (f *faulty) Readv(p [][]byte, off int64) error {
	return errors.Join(f.err, f.Disk.Readv(p, off))
}

func (f *faulty) Writev(p [][]byte, off int64) error {
	return errors.Join(f.err, f.Disk.Writev(p, off))
}
func (f *faulty) WriteZeroes(off, n int64, unmap bool) error { return f.err }
func (f *faulty) Discard(off, n int64) error                 { return f.err }
func (f *faulty) Flush() error {
	f.flushes.Add(1)
	if f.hold != nil {
		<-f.hold
	}
	return f.err
}

func TestErrorsOfTheDiskAreTold(t *testing.T) {
	for _, fault := range []error{unix.ENOSPC, unix.EIO} {
		disk, _ := openDisk(t, diskSize, 0)
		d := newDevice(t, &faulty{Disk: disk, err: fault}, blk.Options{})
		q := plug(t, d).Queues[0]
		_, readStatus := read(q, 0, 512)
		for name, s := range map[string]byte{
			"read": readStatus, "write": write(q, 0, pattern(512, 0)), "flush": flush(q),
			"zeroes": erase(q, typeWriteZeroes, [3]uint64{0, 8, 0}), "discard": erase(q, typeDiscard, [3]uint64{0, 8, 0}),
		} {
			if s != statusIOError {
				t.Errorf("%v: %s has status %d", fault, name, s)
			}
		}
		if m := d.Metrics(); !errors.Is(m.LastError, fault) || m.Read.Errors != 1 || m.Write.Errors != 1 || m.Flush.Errors != 1 || m.Erase.Errors != 2 {
			t.Errorf("metrics %+v", m)
		}
	}
}

func TestADiskThatIsFullStaysTheGuestsTrouble(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	disk, err := blk.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, disk, blk.Options{})
	q := plug(t, d).Queues[0]
	if s := write(q, 0, pattern(2<<20, 1)); s != statusIOError || !errors.Is(d.Metrics().LastError, unix.ENOSPC) {
		t.Errorf("status %d, %v", s, d.Metrics().LastError)
	}
	if s := erase(q, typeDiscard, [3]uint64{0, diskSize / 512, 0}); s != statusOK {
		t.Errorf("discard: status %d", s)
	}
	if s := write(q, 0, pattern(64<<10, 1)); s != statusOK {
		t.Errorf("with space again: status %d", s)
	}
}

func TestAFlushKeepsNoReadWaiting(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	f := &faulty{Disk: disk, hold: make(chan struct{})}
	q := plug(t, newDevice(t, f, blk.Options{})).Queues[0]
	slow := q.Make([][]byte{header(typeFlush, 0)}, 1)
	q.Add(slow)
	q.Kick()
	for range 100 {
		if _, s := read(q, 0, 512); s != statusOK {
			t.Fatalf("status %d", s)
		}
	}
	if q.InFlight() != 1 {
		t.Errorf("%d requests are with the device", q.InFlight())
	}
	close(f.hold)
	q.Wait(slow)
}

func TestWritesStayWithoutACache(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	f := &faulty{Disk: disk}
	g := plug(t, newDevice(t, f, blk.Options{}))
	write(g.Queues[0], 0, pattern(512, 1))
	if n := f.flushes.Load(); n != 0 {
		t.Errorf("%d flushes with a cache", n)
	}
	g.SetConfig(32, 1, 0)
	write(g.Queues[0], 0, pattern(512, 1))
	if n := f.flushes.Load(); n != 1 || g.Config(32, 1) != 0 {
		t.Errorf("%d flushes without, writeback %d", n, g.Config(32, 1))
	}
	g.Move(newDevice(t, f, blk.Options{}))
	if g.Config(32, 1) != 0 {
		t.Error("the cache mode wasn't saved")
	}
	g.Start(g.Offered())
	if g.Config(32, 1) != 1 {
		t.Error("a reset leaves the cache mode")
	}
	g.Start(0) // a driver that can't flush
	write(g.Queues[0], 0, pattern(512, 1))
	if n := f.flushes.Load(); n != 2 {
		t.Errorf("%d flushes for a driver that can't", n)
	}
}

func TestLimitsHold(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	l := ratelimit.New(ratelimit.Limits{Operations: ratelimit.Rate{PerSecond: 50, Burst: 1}})
	g := plug(t, newDevice(t, disk, blk.Options{Limits: l}))
	q := g.Queues[0]
	began := time.Now()
	for range 11 {
		read(q, 0, 512)
	}
	if took := time.Since(began); took < 190*time.Millisecond {
		t.Errorf("11 reads at 50 a second took %v", took)
	}
	// One who waits for an hour is paused at once, and goes on when limits go.
	l.Set(ratelimit.Limits{Bytes: ratelimit.Rate{PerSecond: 1, Burst: 1}})
	read(q, 0, 4096)
	r := q.Make([][]byte{header(typeIn, 0)}, 512, 1)
	q.Add(r)
	q.Kick()
	g.Transport().Pause()
	if n := q.Reap(); n != 0 {
		t.Error("a request was let through")
	}
	g.Transport().Resume()
	l.Set(ratelimit.Limits{})
	q.Wait(r)
}

// changes are what a tracker was told.
type changes struct {
	mu sync.Mutex
	of map[[2]int64]int
}

func (c *changes) Change(off, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[[2]int64{off, n}]++
}

func TestChangesAreTracked(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	c := &changes{of: map[[2]int64]int{}}
	ended := &changes{of: map[[2]int64]int{}}
	d := newDevice(t, disk, blk.Options{})
	q := plug(t, d).Queues[0]
	write(q, 0, pattern(4096, 1)) // before anybody is told
	d.Track(ended)
	d.Track(c)
	d.Untrack(ended)
	read(q, 0, 4096)
	flush(q)
	write(q, 8, pattern(4096, 1))
	erase(q, typeWriteZeroes, [3]uint64{32, 8, 1})
	erase(q, typeDiscard, [3]uint64{64, 16, 0}, [3]uint64{128, 8, 0})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, want := range [][2]int64{{4096, 4096}, {16384, 4096}, {32768, 8192}, {65536, 4096}} {
		if c.of[want] < 2 {
			t.Errorf("%d bytes at %d were told %d times", want[1], want[0], c.of[want])
		}
		delete(c.of, want)
	}
	if len(ended.of) != 0 {
		t.Errorf("who had ended it is told: %v", ended.of)
	}
	if len(c.of) != 0 {
		t.Errorf("what never changed was told: %v", c.of)
	}
}

// TestNothingIsLostInMoves has writers number sectors while the device is
// paused, saved and restored in others, and compares at the end.
func TestNothingIsLostInMoves(t *testing.T) {
	const perWriter, moves = 300, 12
	disk, _ := openDisk(t, diskSize, 0)
	o := blk.Options{Queues: 2}
	g := plug(t, newDevice(t, disk, o))
	var writers sync.WaitGroup
	errs := make(chan error, 4)
	for w := range 4 {
		q := g.Queues[w%2]
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			base := uint64(w) * diskSize / 512 / 4
			wrote := map[uint64][]byte{}
			for i := range perWriter {
				sector := base + r.Uint64N(64)*8
				data := pattern(4096, byte(i))
				binary.LittleEndian.PutUint64(data, uint64(i))
				if s := write(q, sector, data); s != statusOK {
					errs <- fmt.Errorf("write %d: status %d", i, s)
					return
				}
				wrote[sector] = data
				look := base + r.Uint64N(64)*8
				got, s := read(q, look, 4096)
				if want := wrote[look]; s != statusOK || want != nil && !bytes.Equal(got, want) {
					errs <- fmt.Errorf("sector %d after write %d: status %d, or not what was written", look, i, s)
					return
				}
			}
		})
	}
	for range moves {
		g.Move(newDevice(t, disk, o))
	}
	writers.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

func TestStatesAreChecked(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	for _, bad := range []string{"", "{}", "[]", `{"Version":2}`, `{"Version":1,"Writeback":7}`} {
		if newDevice(t, disk, blk.Options{}).Restore([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestDisksThatCanNotBeAreRefused(t *testing.T) {
	odd, _ := openDisk(t, 1000, 0)
	if _, err := blk.New(odd, blk.Options{}); err == nil {
		t.Error("half a sector")
	}
	disk, _ := openDisk(t, diskSize, 0)
	for _, o := range []blk.Options{{Queues: -1}, {Queues: 1000}, {Serial: "more than twenty bytes"}} {
		if _, err := blk.New(disk, o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := blk.NewFile(dir); err == nil {
		t.Error("a directory is a disk")
	}
}

// FuzzRequest makes requests of anything.
func FuzzRequest(f *testing.F) {
	f.Add(uint32(typeOut), uint64(3), []byte("data"), uint16(512), byte(1))
	f.Add(uint32(typeDiscard), uint64(0), make([]byte, 32), uint16(1), byte(2))
	f.Add(uint32(typeGetID), uint64(0), []byte{}, uint16(21), byte(0))
	f.Add(uint32(typeIn), uint64(1<<63), []byte{}, uint16(4097), byte(3))
	disk, _ := openDisk(f, diskSize, 0)
	d := newDevice(f, disk, blk.Options{Serial: "fuzz"})
	f.Fuzz(func(t *testing.T, kind uint32, sector uint64, data []byte, room uint16, shape byte) {
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		q := g.Queues[0]
		q.Indirect = shape&1 != 0
		h := header(kind, sector)
		readable := [][]byte{h[:int(shape)%17], h[int(shape)%17:], data}
		if shape&2 != 0 {
			readable = [][]byte{append(h, data...)}
		}
		r := q.Do(readable, int(room)/2+1, int(room)/2+1)
		if s := r.Writable[1][len(r.Writable[1])-1]; s > statusUnsupp {
			t.Errorf("status %d", s)
		}
	})
}

// FuzzChain puts anything where descriptors are.
func FuzzChain(f *testing.F) {
	f.Add(make([]byte, 64))
	disk, _ := openDisk(f, diskSize, 0)
	d := newDevice(f, disk, blk.Options{})
	f.Fuzz(func(t *testing.T, descriptors []byte) {
		g := virtiotest.Plug(t, d)
		g.Start(g.Offered())
		g.Queues[0].Raw(descriptors)
		g.Queues[0].Kick()
		g.Transport().Pause()
		g.Transport().Resume()
		g.Reset()
	})
}

func TestWhatIsDoneIsToldBeforeALimitIsWaitedFor(t *testing.T) {
	disk, _ := openDisk(t, diskSize, 0)
	l := ratelimit.New(ratelimit.Limits{Bytes: ratelimit.Rate{PerSecond: 1, Burst: 1024}})
	g := plug(t, newDevice(t, disk, blk.Options{Limits: l}))
	q := g.Queues[0]
	var rs []*virtiotest.Request
	for range 4 {
		r := q.Make([][]byte{header(typeIn, 0)}, 512, 1)
		q.Add(r)
		rs = append(rs, r)
	}
	q.Kick()
	q.Wait(rs[1]) // while the third waits for minutes
	if n := q.InFlight(); n != 2 {
		t.Errorf("%d requests are with the device", n)
	}
	l.Set(ratelimit.Limits{})
	q.Wait(rs[3])
}
