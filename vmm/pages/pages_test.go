package pages

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// image is a memory of which some is zeroes, and one that is to be filled.
type image struct {
	mu   sync.Mutex
	data []byte
	has  []bool // by page
	left int64
	came chan struct{} // closed at each part, and made anew
}

const testSize = 3 << 20

func newSource() *image {
	i := &image{data: make([]byte, testSize)}
	random := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < testSize; off += 64 << 10 {
		if off/(64<<10)%3 != 1 {
			_, _ = random.Read(i.data[off : off+48<<10])
		}
	}
	return i
}

func newSink() *image {
	return &image{data: make([]byte, testSize), has: make([]bool, testSize/pageSize), left: testSize, came: make(chan struct{})}
}

func (i *image) Size() int64 { return int64(len(i.data)) }

func (i *image) ReadAt(p []byte, off int64) (int, error) { return copy(p, i.data[off:]), nil }

func (i *image) Data(off int64) (int64, int64, error) {
	for ; off < i.Size(); off += pageSize {
		if !blank(i.data[off : off+pageSize]) {
			return off, off + pageSize, nil
		}
	}
	return i.Size(), i.Size(), nil
}

func blank(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func (i *image) put(off, n int64, b []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for p := off / pageSize; p < (off+n)/pageSize; p++ {
		if i.has[p] {
			continue
		}
		i.has[p] = true
		i.left -= pageSize
		if b != nil {
			copy(i.data[p*pageSize:], b[p*pageSize-off:][:pageSize])
		}
	}
	close(i.came)
	i.came = make(chan struct{})
}

func (i *image) WriteAt(p []byte, off int64) (int, error) {
	i.put(off, int64(len(p)), p)
	return len(p), nil
}

func (i *image) Zero(off, n int64) error { i.put(off, n, nil); return nil }

func (i *image) Left() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.left
}

// wait returns when a page has come.
func (i *image) wait(t *testing.T, page int64) {
	for timeout := time.After(20 * time.Second); ; {
		i.mu.Lock()
		has, came := i.has[page], i.came
		i.mu.Unlock()
		if has {
			return
		}
		select {
		case <-came:
		case <-timeout:
			t.Errorf("page %d doesn't come", page)
			return
		}
	}
}

// pair is a connection.
func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestAMemoryComes(t *testing.T) {
	a, b := pair(t)
	from, to := newSource(), newSink()
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), a, from) }()
	f := NewFetcher()
	var waiting sync.WaitGroup
	for _, page := range []int64{700, 5, 333, 334, 0, testSize/pageSize - 1} {
		f.Want(page*pageSize, pageSize)
		waiting.Go(func() { to.wait(t, page) })
	}
	if err := f.Run(t.Context(), b, to); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if !bytes.Equal(from.data, to.data) {
		t.Error("what has come isn't what was sent")
	}
}

// slow is a source of which each read takes a while, so that little goes before
// what is wanted.
type slow struct {
	*image
	first chan int64 // where reads began
}

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	s.first <- off
	return s.image.ReadAt(p, off)
}

func TestWhatIsWantedComesFirst(t *testing.T) {
	a, b := pair(t)
	from, to := slow{newSource(), make(chan int64)}, newSink()
	served := make(chan error, 1)
	go func() { served <- Serve(t.Context(), a, from) }()
	f := NewFetcher()
	fetched := make(chan error, 1)
	go func() { fetched <- f.Run(t.Context(), b, to) }()
	<-from.first // one piece is under way
	const last = testSize - 64<<10
	f.Want(last, pageSize)
	reads, seen := 0, false
	for done := false; !done; {
		select {
		case off := <-from.first:
			if reads++; off == last && !seen {
				if seen = true; reads > 20 {
					t.Errorf("the page that is wanted comes after %d reads", reads)
				}
			}
			if !seen { // what is wanted is on its way
				time.Sleep(time.Millisecond)
			}
		case err := <-fetched:
			if done = true; err != nil {
				t.Error(err)
			}
		}
	}
	if err := <-served; err != nil || !seen {
		t.Errorf("%v; it was read: %v", err, seen)
	}
}

func TestAStreamThatEndsEarlyIsAnError(t *testing.T) {
	a, b := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	from, to := slow{newSource(), make(chan int64)}, newSink()
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, a, from) }()
	go func() {
		for {
			select {
			case <-from.first:
				cancel()
			case <-t.Context().Done():
				return
			}
		}
	}()
	err := NewFetcher().Run(t.Context(), b, to)
	if !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "bytes are missing") {
		t.Errorf("the guest's side: %v", err)
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("the memory's side: %v", err)
	}
}

func TestAGuestThatLeavesIsAnError(t *testing.T) {
	a, b := pair(t)
	b.Close()
	if err := Serve(t.Context(), a, newSource()); err == nil {
		t.Error("nobody was there, and it was served")
	}
}

// short is a source whose file has been cut.
type short struct{ *image }

func (s short) ReadAt(p []byte, off int64) (int, error) {
	n, _ := s.image.ReadAt(p[:len(p)/2], off)
	return n, io.EOF
}

func TestAMemoryThatIsTooShortIsAnError(t *testing.T) {
	a, b := pair(t)
	go func() { _ = NewFetcher().Run(t.Context(), b, newSink()) }()
	if err := Serve(t.Context(), a, short{newSource()}); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestNeitherSideBelievesTheOther(t *testing.T) {
	part := func(off, size int64, zero bool) []byte { return head{off, size, zero}.append(nil) }
	good := greeting(testSize)
	for name, sent := range map[string][]byte{
		"nothing":            {},
		"another protocol":   []byte("GET / HTTP/1.1\r\n\r\n"),
		"another memory":     greeting(testSize + pageSize),
		"behind the end":     append(good[:16:16], part(testSize, pageSize, false)...),
		"beyond the end":     append(good[:16:16], part(testSize-pageSize, 2*pageSize, true)...),
		"a negative offset":  append(good[:16:16], part(-pageSize, pageSize, true)...),
		"half a page":        append(good[:16:16], part(0, pageSize/2, false)...),
		"too much at once":   append(good[:16:16], part(0, MaxPart+pageSize, false)...),
		"nothing at all":     append(good[:16:16], part(0, 0, true)...),
		"half a part":        append(good[:16:16], append(part(0, pageSize, false), 1, 2, 3)...),
		"an offset in pages": append(good[:16:16], part(17, pageSize, false)...),
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(t)
			go func() { _, _ = a.Write(sent); a.Close() }()
			to := newSink()
			if err := NewFetcher().Run(t.Context(), b, to); err == nil || to.Left() != testSize {
				t.Errorf("%v, and %d bytes are left", err, to.Left())
			}
		})
	}
	for name, sent := range map[string][]byte{
		"behind the end": part(testSize, pageSize, false),
		"zeroes":         part(0, pageSize, true),
		"too much":       part(0, MaxPart+pageSize, false),
	} {
		t.Run("wanted: "+name, func(t *testing.T) {
			a, b := pair(t)
			hold := slow{newSource(), make(chan int64)}
			go func() {
				_, _ = b.Write(sent)
				go func() { _, _ = io.Copy(io.Discard, b) }()
				for {
					select {
					case <-hold.first:
						time.Sleep(time.Millisecond) // so that what was said is heard before the end
					case <-t.Context().Done():
						return
					}
				}
			}()
			if err := Serve(t.Context(), a, hold); !errors.Is(err, errBroken) {
				t.Error(err)
			}
		})
	}
}

// stream is a connection of which one side is given.
type stream struct {
	io.Reader
	io.Writer
}

func FuzzTake(f *testing.F) {
	f.Add(greeting(testSize))
	f.Add(head{0, pageSize, true}.append(greeting(testSize)))
	f.Add(append(head{pageSize, pageSize, false}.append(greeting(testSize)), make([]byte, pageSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		to := newSink()
		if err := take(stream{bytes.NewReader(b), io.Discard}, to); err == nil && to.Left() > 0 {
			t.Error("it is whole, and something is missing")
		}
	})
}

func FuzzListen(f *testing.F) {
	f.Add(head{0, pageSize, false}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := net.Pipe()
		go func() { _, _ = c.Write(b); c.Close() }()
		s := &server{conn: a, memory: newSource()}
		if err := s.listen(); err == nil {
			t.Error("listening ends without a reason")
		}
		for _, w := range s.wants {
			if w.offset < 0 || w.offset+w.size > testSize {
				t.Errorf("%d bytes at %d are wanted", w.size, w.offset)
			}
		}
		a.Close()
	})
}
