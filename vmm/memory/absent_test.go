package memory

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const absentPages = 256

// absent is memory of which every page but each eighth is elsewhere; those have
// zeroes.
func absent(t *testing.T, want func(off, n int64)) (*Memory, *Absent, []byte) {
	t.Helper()
	device, err := os.OpenFile(FaultDevice, os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer device.Close()
	m, err := New(absentPages*PageSize, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	content := make([]byte, absentPages*PageSize)
	a := m.NewAbsent()
	for p := range int64(absentPages) {
		if p%8 == 0 {
			continue
		}
		for i := range content[p*PageSize : (p+1)*PageSize] {
			content[p*PageSize+int64(i)] = byte(p) | 1
		}
		if p%3 == 0 { // of which there is an old one
			if err := m.Write(bytes.Repeat([]byte{0xee}, PageSize), uint64(p*PageSize)); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Later(p*PageSize, PageSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Begin(device, want, func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
	return m, a, content
}

// TestMemoryComesToWhoNeedsIt has goroutines, and the kernel in their name,
// read and write memory of which nothing is there, while Go's runtime stops
// all of them again and again: pages come one by one, as they are asked for.
func TestMemoryComesToWhoNeedsIt(t *testing.T) {
	type part struct{ off, n int64 }
	wanted := make(chan part, absentPages)
	m, a, content := absent(t, func(off, n int64) { wanted <- part{off, n} })
	done := make(chan struct{})
	var server sync.WaitGroup
	server.Go(func() {
		for {
			select {
			case p := <-wanted:
				time.Sleep(100 * time.Microsecond) // the way to the other host
				if err := a.Came(p.off, p.n, content[p.off:p.off+p.n]); err != nil {
					t.Error(err)
				}
			case <-done:
				return
			}
		}
	})
	server.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				runtime.GC()
			}
		}
	})
	var readers sync.WaitGroup
	for n := range 6 {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 1))
			for _, p := range random.Perm(absentPages - 2) {
				at := uint64(p*PageSize + random.IntN(PageSize))
				size := uint64(1 + random.IntN(2*PageSize-1))
				if size > uint64(len(content))-at {
					size = uint64(len(content)) - at
				}
				got, read := make([]byte, size), m.Read
				if n%2 != 0 {
					read = func(p []byte, addr uint64) error { return byKernel(m, p, addr) }
				}
				if err := read(got, at); err != nil {
					t.Error(err)
				} else if !bytes.Equal(got, content[at:at+size]) {
					t.Errorf("%d bytes at %#x are others", size, at)
				}
			}
		})
	}
	readers.Wait()
	if err := a.Came(0, int64(len(content)), content); err != nil { // what nobody has needed
		t.Error(err)
	}
	close(done)
	server.Wait()
	if a.Left() != 0 || m.absent.Load() != nil {
		t.Errorf("%d bytes are still to come", a.Left())
	}
	got := make([]byte, len(content))
	if err := m.Read(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("memory differs, %v", err)
	}
	if err := m.Discard(PageSize, PageSize); err != nil {
		t.Error(err)
	}
	if b, err := m.Slice(PageSize, PageSize); err != nil || b[0] != 0 { // hangs if somebody still waits
		t.Errorf("%v, %v", b[0], err)
	}
}

// byKernel reads memory by a system call, which waits in the kernel.
func byKernel(m *Memory, to []byte, at uint64) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	from := m.regions[0].Host[at : at+uint64(len(to))]
	for len(from) > 0 {
		n, err := unix.Write(int(w.Fd()), from[:min(len(from), PageSize)])
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, to[:n]); err != nil {
			return err
		}
		from, to = from[n:], to[n:]
	}
	return nil
}

func TestWhatIsNewerStays(t *testing.T) {
	wanted := make(chan int64, absentPages)
	m, a, content := absent(t, func(off, _ int64) { wanted <- off })
	if err := m.Write([]byte("new"), 8*PageSize); err != nil { // of zeroes, which nobody has to send
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() { written <- m.Write([]byte("new"), 9*PageSize) }()
	if off := <-wanted; off != 9*PageSize {
		t.Errorf("%#x is asked for", off)
	}
	if err := a.Came(9*PageSize, PageSize, content[9*PageSize:10*PageSize]); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	// What was asked for comes with all else a second time.
	if err := a.Came(0, int64(len(content)), content); err != nil {
		t.Fatal(err)
	}
	for p := range uint64(2) {
		b, err := m.Slice((8+p)*PageSize, PageSize)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:3]) != "new" || b[3] != content[(8+p)*PageSize+3] {
			t.Errorf("page %d has %q", 8+p, b[:4])
		}
	}
}

func TestMissingMemoryIsAskedForAnew(t *testing.T) {
	wanted := make(chan int64, absentPages)
	m, a, content := absent(t, func(off, _ int64) { wanted <- off })
	if err := a.Came(0, 128*PageSize, content); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() { read <- m.Read(make([]byte, 1), 200*PageSize+PageSize) }()
	<-wanted
	left := int64(0)
	if err := a.Missing(func(off, n int64) error {
		if off < 128*PageSize || off%(8*PageSize) == 0 || n != 7*PageSize {
			t.Errorf("%d bytes at %#x are missing", n, off)
		}
		left += n
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if off := <-wanted; off != 201*PageSize {
		t.Errorf("%#x is asked for", off)
	}
	if left != a.Left() || left != 112*PageSize {
		t.Errorf("%d bytes are missing, of %d", left, a.Left())
	}
	if err := a.Came(128*PageSize, 128*PageSize, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-read; err != nil || a.Left() != 0 {
		t.Errorf("%v, %d bytes are missing", err, a.Left())
	}
}

func TestMemoryThatNeverComesIsAnError(t *testing.T) {
	asked := make(chan struct{}, absentPages)
	m, a, _ := absent(t, func(int64, int64) { asked <- struct{}{} })
	read := make(chan error, 1)
	go func() { read <- m.Read(make([]byte, 1), PageSize) }()
	<-asked
	a.Abandon()
	if err := <-read; !errors.Is(err, ErrAbandoned) {
		t.Errorf("who waits hears %v", err)
	}
	if err := m.Read(make([]byte, 1), PageSize); !errors.Is(err, ErrAbandoned) {
		t.Errorf("who comes later hears %v", err)
	}
	if err := a.Came(PageSize, PageSize, make([]byte, PageSize)); !errors.Is(err, ErrAbandoned) {
		t.Errorf("who brings it hears %v", err)
	}
}

func TestNoMemoryComesFromOutside(t *testing.T) {
	_, a, _ := absent(t, func(int64, int64) {})
	for _, c := range [][2]int64{{-PageSize, PageSize}, {1, PageSize}, {0, 1}, {0, 0}, {absentPages * PageSize, PageSize}, {1<<63 - PageSize, PageSize}} {
		if err := a.Came(c[0], c[1], nil); !errors.Is(err, ErrOutside) {
			t.Errorf("%d bytes at %#x: %v", c[1], c[0], err)
		}
	}
	if err := a.Later(PageSize, PageSize); err == nil {
		t.Error("what is there may come later")
	}
}
