package memory

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMemoryLeavesTheHoleFree(t *testing.T) {
	for _, c := range []struct {
		size uint64
		want []piece
	}{
		{1 << 20, []piece{{0, 0, 1 << 20}}},
		{HoleStart, []piece{{0, 0, HoleStart}}},
		{5 << 30, []piece{{0, 0, HoleStart}, {HoleEnd, HoleStart, 2 << 30}}},
	} {
		got := layout(c.size, 0)
		if len(got) != len(c.want) {
			t.Errorf("%d: got %v", c.size, got)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%d: got %v, want %v", c.size, got, c.want)
			}
		}
	}
}

func TestOnlyWhatIsThereIsReached(t *testing.T) {
	m, err := New(HoleStart+8*PageSize, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const top = HoleEnd + 8*PageSize
	for _, c := range []struct {
		addr, n uint64
		ok      bool
	}{
		{0, 0, true},
		{0, 1, true},
		{HoleStart - 1, 1, true},
		{HoleStart - 1, 2, false},
		{HoleStart, 1, false},
		{HoleStart, 0, false},
		{HoleEnd - 1, 1, false},
		{HoleEnd - 1, 2, false},
		{HoleEnd, 8 * PageSize, true},
		{HoleEnd, 8*PageSize + 1, false},
		{top - 1, 1, true},
		{top, 1, false},
		{math.MaxUint64, 1, false},
		{math.MaxUint64, 2, false},
		{1, math.MaxUint64, false},
		{HoleEnd, math.MaxUint64, false},
		{0, HoleStart, true},
		{0, HoleStart + 1, false},
	} {
		b, err := m.Slice(c.addr, c.n)
		if (err == nil) != c.ok || c.ok && (uint64(len(b)) != c.n || uint64(cap(b)) != c.n) {
			t.Errorf("%d bytes at %#x: got %d, %v", c.n, c.addr, len(b), err)
		}
		if err != nil && !errors.Is(err, ErrOutside) {
			t.Error(err)
		}
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	m, err := New(1<<20, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Write([]byte{1, 2, 3}, 0x1000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if err := m.Read(got, 0x1001); err != nil || got[0] != 2 || got[1] != 3 {
		t.Errorf("got %v, %v", got, err)
	}
	if n, err := m.Uint16(0x1000); err != nil || n != 0x0201 {
		t.Errorf("got %#x, %v", n, err)
	}
	if err := m.Write([]byte{1, 2}, 1<<20-1); !errors.Is(err, ErrOutside) {
		t.Errorf("got %v", err)
	}
}

func TestSizesThatAreNoPagesAreRefused(t *testing.T) {
	for _, size := range []uint64{0, 1, PageSize + 1} {
		if m, err := New(size, Options{}); err == nil {
			m.Close()
			t.Errorf("%d bytes were made", size)
		}
	}
}

func FuzzSlice(f *testing.F) {
	f.Add(uint64(0), uint64(1))
	f.Add(uint64(HoleEnd), uint64(math.MaxUint64))
	m, err := New(HoleStart+PageSize, Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { m.Close() })
	f.Fuzz(func(t *testing.T, addr, n uint64) {
		if b, err := m.Slice(addr, n); err == nil && uint64(len(b)) != n {
			t.Errorf("%d bytes at %#x are %d", n, addr, len(b))
		}
	})
}

func TestWhatIsWrittenIsNoted(t *testing.T) {
	m, err := New(1<<20, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Write(make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	m.Track(true)
	if err := m.Write(make([]byte, 2), 3*PageSize-1); err != nil {
		t.Fatal(err)
	}
	b, _ := m.Slice(70*PageSize, 100)
	m.Wrote(b[50:60])
	got := make([]uint64, 4)
	m.TakeWritten(0, got)
	if got[0] != 1<<2|1<<3 || got[1] != 1<<6 {
		t.Errorf("noted are %b", got)
	}
	clear(got)
	if m.TakeWritten(0, got); got[0]|got[1] != 0 {
		t.Errorf("still noted are %b", got)
	}
}

func TestWhatIsDiscardedReadsAsZeroes(t *testing.T) {
	for _, sharing := range []int{unix.MAP_SHARED, unix.MAP_PRIVATE} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bytes.Repeat([]byte{7}, 4*PageSize)); err != nil {
			t.Fatal(err)
		}
		m, err := Map(f, 4*PageSize, sharing)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Discard(PageSize-1, 2*PageSize); err != nil {
			t.Fatal(err)
		}
		b, _ := m.Slice(0, 4*PageSize)
		if b[PageSize-1] != 7 || b[PageSize] != 0 || b[2*PageSize-1] != 0 || b[2*PageSize] != 7 {
			t.Error("another page was discarded")
		}
		if m.Discard(1<<40, PageSize) == nil {
			t.Error("memory was discarded that isn't there")
		}
		m.Close()
	}
}

func TestHugePagesAreThereOrItIsSaidWhatIsMissing(t *testing.T) {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	free := 0
	for line := range strings.Lines(string(info)) {
		_, _ = fmt.Sscanf(line, "HugePages_Free: %d", &free)
	}
	m, err := New(8<<20, Options{HugePages: true})
	if free < 4 {
		if err == nil || !strings.Contains(err.Error(), "4 huge pages") {
			t.Errorf("with %d pages: %v", free, err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Write([]byte("x"), 6<<20); err != nil {
		t.Error(err)
	}
}

func TestPluggableMemoryIsBehindTheRest(t *testing.T) {
	for size, want := range map[uint64]uint64{1 << 20: 4 << 30, HoleStart: 4 << 30, HoleStart + 1<<20: 6 << 30, 8 << 30: 10 << 30} {
		if got := PluggableAddr(size); got != want {
			t.Errorf("beside %d MiB it is at %#x instead of %#x", size>>20, got, want)
		}
	}
	m, err := New(16<<20, Options{Pluggable: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Size() != 16<<20 || m.FileSize() != 20<<20 || len(m.Regions()) != 2 || m.Regions()[0].Pluggable || !m.Regions()[1].Pluggable {
		t.Errorf("%d of %d bytes in %d regions", m.Size(), m.FileSize(), len(m.Regions()))
	}
	if err := m.Write([]byte("there"), 4<<30); err != nil {
		t.Error(err)
	}
	b := make([]byte, 5)
	if _, err := m.File().ReadAt(b, 16<<20); err != nil || string(b) != "there" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := New(16<<20, Options{Pluggable: 4 << 20, HugePages: true}); err == nil {
		t.Error("huge pages for what may never be there")
	}
}

func TestLentMemoryIsFoundAndNotSaved(t *testing.T) {
	m, err := New(1<<20, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	m.Lend(1<<40, []byte("lent"))
	if b, err := m.Slice(1<<40+1, 3); err != nil || string(b) != "ent" {
		t.Errorf("%q, %v", b, err)
	}
	for _, at := range []uint64{1<<40 - 1, 1<<40 + 1, 1 << 41} {
		if _, err := m.Slice(at, 4); !errors.Is(err, ErrOutside) {
			t.Errorf("at %#x: %v", at, err)
		}
	}
	if m.FileSize() != 1<<20 {
		t.Errorf("the file has %d bytes", m.FileSize())
	}
}
