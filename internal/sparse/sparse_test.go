package sparse

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"
)

// make writes a file with data at these offsets and the given size.
func file(t *testing.T, size int64, data map[int64][]byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for at, b := range data {
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func same(t *testing.T, a, b *os.File) {
	t.Helper()
	x, err := io.ReadAll(io.NewSectionReader(a, 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	y, err := io.ReadAll(io.NewSectionReader(b, 0, 1<<40))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Error("the files differ")
	}
}

func TestCopyKeepsHoles(t *testing.T) {
	src := file(t, 64<<20+3, map[int64][]byte{0: noise(5000), 17 << 20: noise(1 << 20), 64<<20 + 1: {7, 8}})
	dst := file(t, 0, nil)
	var last int64
	if err := Copy(t.Context(), dst, src, func(done, total int64) { last = total - done }); err != nil {
		t.Fatal(err)
	}
	same(t, src, dst)
	if last != 0 {
		t.Errorf("the last report left %d bytes", last)
	}
	if got := blocks(t, dst); got > 2<<20 {
		t.Errorf("the copy takes %d bytes", got)
	}
}

func TestCopyOfEmptyAndAllHole(t *testing.T) {
	for _, size := range []int64{0, 1, 5 << 20} {
		dst := file(t, 0, nil)
		src := file(t, size, nil)
		if err := Copy(t.Context(), dst, src, nil); err != nil {
			t.Fatal(err)
		}
		same(t, src, dst)
	}
}

func TestFillMakesHolesOfZeros(t *testing.T) {
	src := file(t, 20<<20+100, map[int64][]byte{4096: noise(4096), 9<<20 - 5: noise(10), 20 << 20: noise(100)})
	dst := file(t, 0, nil)
	var h Hash
	size, err := Fill(t.Context(), dst, io.NewSectionReader(src, 0, 1<<40), &h, 1<<30, nil)
	digest := h.Sum(size)
	if err != nil || size != 20<<20+100 {
		t.Fatalf("size %d: %v", size, err)
	}
	same(t, src, dst)
	if got := blocks(t, dst); got > 1<<20 {
		t.Errorf("it takes %d bytes", got)
	}
	for name, f := range map[string]*os.File{"source": src, "copy": dst} {
		if d, err := Digest(t.Context(), f, nil); err != nil || d != digest {
			t.Errorf("digest of the %s is %s, while filling it was %s: %v", name, d, digest, err)
		}
	}
}

func TestFillTellsOfAStreamThatIsCutOff(t *testing.T) {
	for _, n := range []int{0, 5, ChunkSize, ChunkSize + 5} {
		cut := io.MultiReader(bytes.NewReader(noise(n)), iotest.ErrReader(io.ErrUnexpectedEOF))
		if _, err := Fill(t.Context(), file(t, 0, nil), cut, new(Hash), 1<<30, nil); err != io.ErrUnexpectedEOF {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

func TestFillStopsAtItsLimit(t *testing.T) {
	if _, err := Fill(t.Context(), file(t, 0, nil), bytes.NewReader(noise(5<<20)), nil, 4<<20, nil); err != ErrTooLong {
		t.Errorf("got %v", err)
	}
}

func TestDigestSeesContentAndSizeNotHoles(t *testing.T) {
	written := file(t, 0, map[int64][]byte{0: append(make([]byte, 3<<20), noise(10)...)})
	holes := file(t, 3<<20+10, map[int64][]byte{3 << 20: noise(10)})
	longer := file(t, 3<<20+11, map[int64][]byte{3 << 20: noise(10)})
	moved := file(t, 3<<20+10, map[int64][]byte{3<<20 - 1: noise(10)})
	sum := func(f *os.File) string {
		d, err := Digest(t.Context(), f, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	if sum(written) != sum(holes) {
		t.Error("a hole makes a difference")
	}
	if sum(holes) == sum(longer) || sum(holes) == sum(moved) {
		t.Error("other files have the same digest")
	}
}

func FuzzWriteAt(f *testing.F) {
	f.Add([]byte("x"), 4095, 5000)
	f.Fuzz(func(t *testing.T, b []byte, lead, tail int) {
		if lead < 0 || tail < 0 || lead > 1<<16 || tail > 1<<16 {
			return
		}
		data := append(append(make([]byte, lead), b...), make([]byte, tail)...)
		dst := file(t, int64(len(data)), nil)
		if err := WriteAt(dst, data, 0); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(dst, 0, 1<<40))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes came back as %d: %v", len(data), len(got), err)
		}
	})
}
