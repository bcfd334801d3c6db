package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/qcow2"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	"github.com/cleave-project/cleave/vmm/virtio/virtiotest"
)

var (
	_ blk.Disk   = (*qcow2.Image)(nil)
	_ qcow2.File = (*blk.File)(nil)
)

// qemuImg runs qemu-img, or skips the test.
func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skipf("needs qemu-img: %v (install qemu-utils)", err)
	}
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func create(t testing.TB, size int, options string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", options, path, fmt.Sprint(size))
	return path
}

func open(t testing.TB, path string, flags int) (*qcow2.Image, error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d, err := blk.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return qcow2.Open(d, false)
}

func mustOpen(t testing.TB, path string, flags int) *qcow2.Image {
	t.Helper()
	i, err := open(t, path, flags)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// pieces cuts b as a guest may have it in memory.
func pieces(r *rand.Rand, b []byte) (out [][]byte) {
	for len(b) > 0 {
		n := min(len(b), (1+r.IntN(16))*512)
		out, b = append(out, b[:n]), b[n:]
	}
	return out
}

// churn does anything to a disk and to a model of it.
func churn(t testing.TB, r *rand.Rand, d blk.Disk, model []byte, ops int) {
	t.Helper()
	sectors := len(model) / 512
	for k := range ops {
		at := r.IntN(sectors)
		n := min(sectors-at, 1+r.IntN(1<<r.IntN(9)))
		off, part := int64(at)*512, model[at*512:(at+n)*512]
		var err error
		what := r.IntN(12)
		switch {
		case what < 5:
			for j := range part {
				part[j] = byte(j + k)
			}
			err = d.Writev(pieces(r, part), off)
		case what == 5:
			clear(part)
			err = d.WriteZeroes(off, int64(len(part)), r.IntN(2) == 0)
		case what == 6:
			clear(part)
			err = errors.Join(d.Discard(off, int64(len(part))), d.WriteZeroes(off, int64(len(part)), true))
		case what == 7:
			err = d.Flush()
		default:
			got := make([]byte, len(part))
			err = d.Readv(pieces(r, got), off)
			if !bytes.Equal(got, part) {
				t.Fatalf("operation %d: %d bytes at %d aren't what they should be", k, len(part), off)
			}
		}
		if err != nil {
			t.Fatalf("operation %d: %v", k, err)
		}
	}
}

// same has qemu-img check an image, and compare it.
func same(t testing.TB, path string, model []byte) {
	t.Helper()
	qemuImg(t, "check", path) // fails for leaks, too
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, model, 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "compare", "-f", "raw", "-F", "qcow2", raw, path)
}

func TestImagesAreWhatQEMUSaysTheyAre(t *testing.T) {
	for _, options := range []string{
		"compat=1.1", "compat=0.10", "cluster_size=4k", "cluster_size=2M", "cluster_size=4k,refcount_bits=1",
		"refcount_bits=8", "refcount_bits=64", "cluster_size=4k,refcount_bits=2", "lazy_refcounts=on",
		"preallocation=metadata", "cluster_size=8k,preallocation=falloc",
	} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			const size = 20<<20 + 512*3
			path := create(t, size, options)
			model := make([]byte, size)
			r := rand.New(rand.NewPCG(1, uint64(len(options))))
			for round := range 3 {
				i := mustOpen(t, path, []int{0, unix.O_DIRECT, 0}[round])
				if n, _ := i.Size(); n != size {
					t.Fatalf("%d bytes instead of %d", n, size)
				}
				if logical, _ := i.Blocks(); logical > 512 {
					continue // a disk that the file system below can't do directly
				}
				churn(t, r, i, model, 400)
				if err := i.Close(); err != nil {
					t.Fatal(err)
				}
				same(t, path, model)
			}
		})
	}
}

func TestImagesOfOthersAreRead(t *testing.T) {
	dir, r := t.TempDir(), rand.New(rand.NewPCG(2, 3))
	model := make([]byte, 8<<20)
	for off := 0; off < len(model); off += 3 << 16 {
		for k := off; k < min(off+1<<16+1<<12, len(model)); k++ {
			model[k] = byte(r.Uint32())
		}
	}
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "disk")
	if err := os.WriteFile(raw, model, 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
	i := mustOpen(t, path, 0)
	got := make([]byte, len(model))
	if err := i.Readv(pieces(r, got), 0); err != nil || !bytes.Equal(got, model) {
		t.Fatalf("it reads otherwise, %v", err)
	}
	churn(t, r, i, model, 300)
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, path, model)
	// What is discarded takes no space, in the image as in its file.
	clear(model)
	if err := errors.Join(i.Discard(0, int64(len(model))), i.Close()); err != nil {
		t.Fatal(err)
	}
	same(t, path, model)
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes are taken by nothing, %v", st.Blocks*512, err)
	}
	if m := qemuImg(t, "map", "--output=json", path); strings.Contains(m, `"data": true`) {
		t.Errorf("what is left: %s", m)
	}
}

func TestWhatCanNotBeOpenedIsRefusedWithTheReason(t *testing.T) {
	base := create(t, 1<<20, "compat=1.1")
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("text"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	backed, packed, ext := filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "c"), filepath.Join(t.TempDir(), "e")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", backed)
	qemuImg(t, "convert", "-c", "-O", "qcow2", "-f", "raw", raw, packed)
	zstd := filepath.Join(t.TempDir(), "z")
	qemuImg(t, "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "-f", "raw", raw, zstd)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+ext+".data,data_file_raw=on", ext, "1M")
	snap := create(t, 1<<20, "compat=1.1")
	qemuImg(t, "snapshot", "-c", "one", snap)
	for path, want := range map[string]string{
		backed: "backing file", packed: "compressed", zstd: "zstd", ext: "another file", snap: "snapshots", raw: "no image",
		create(t, 1<<20, "extended_l2=on"):         "subclusters",
		create(t, 64<<20, "cluster_size=512"):      "too small",
		patched(t, base, 72, 1):                    "closed cleanly",
		patched(t, base, 72, 2):                    "damaged",
		patched(t, base, 72, 1<<40):                "unknown features 0x10000000000",
		patched(t, base, 32, 1<<32):                "encrypted",
		patched(t, base, 40, 1<<50):                "a table of",
		patched(t, base, 24, 1<<60):                "a disk of",
		patched(t, base, 24, 513):                  "513 bytes",
		patched(t, base, 48, 1<<50):                "a table of",
		patched(t, base, 96, 9<<32|104):            "reference counts of",
		patched(t, base, 4, 4<<32):                 "version 4",
		patched(t, base, 16, 40):                   "clusters of 2^40",
		patched(t, base, 196608, 1<<63|1<<40):      "damaged",
		patched(t, base, 196608, 1<<63|65536):      "", // a table that is made of others' entries
		patched(t, base, 196608, 1<<63|65536|1<<9): "damaged",
	} {
		if _, err := open(t, path, 0); want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// patched is a copy of an image with a number of 64 bits changed.
func patched(t *testing.T, path string, at int, v uint64) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint64(b[at:], v)
	out := filepath.Join(t.TempDir(), "patched")
	if err := os.WriteFile(out, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestSnapshotsInsideAreReadAround(t *testing.T) {
	path := create(t, 1<<20, "compat=1.1")
	qemuImg(t, "snapshot", "-c", "one", path)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, err := blk.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	i, err := qcow2.Open(d, true)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if err := errors.Join(i.Readv([][]byte{b}, 0), i.Close()); err != nil {
		t.Error(err)
	}
}

// failing is a file in memory whose power can fail: what was written since the
// last Flush is then there or not, block by block.
type failing struct {
	mu     sync.Mutex
	synced []byte
	now    []byte
	dirty  map[int64]bool // blocks
	err    error
}

const block = 512

func newFailing(b []byte) *failing {
	return &failing{synced: bytes.Clone(b), now: bytes.Clone(b), dirty: map[int64]bool{}}
}

func (f *failing) Size() (int64, error)     { return int64(len(f.now)), nil }
func (f *failing) Blocks() (int, int)       { return block, block }
func (f *failing) Discard(_, _ int64) error { return nil }
func (f *failing) WriteZeroes(off, n int64, _ bool) error {
	return f.Writev([][]byte{make([]byte, n)}, off)
}

func (f *failing) Readv(p [][]byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range p {
		if off+int64(len(b)) > int64(len(f.now)) {
			return io.ErrUnexpectedEOF
		}
		off += int64(copy(b, f.now[off:]))
	}
	return nil
}

func (f *failing) Writev(p [][]byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	for _, b := range p {
		if end := off + int64(len(b)); end > int64(len(f.now)) {
			f.now = append(f.now, make([]byte, end-int64(len(f.now)))...)
		}
		for k := off / block; k*block < off+int64(len(b)); k++ {
			f.dirty[k] = true
		}
		off += int64(copy(f.now[off:], b))
	}
	return nil
}

func (f *failing) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.synced = append(f.synced[:0], f.now...)
	clear(f.dirty)
	return nil
}

// crash is what the file may be when power fails now.
func (f *failing) crash(r *rand.Rand) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := append(bytes.Clone(f.synced), make([]byte, len(f.now)-len(f.synced))...)
	for k := range f.dirty {
		if r.IntN(2) == 0 {
			copy(out[k*block:min((k+1)*block, int64(len(out)))], f.now[k*block:])
		}
	}
	return out
}

// TestPowerFailsAnywhere cuts the power after any write: the image is sound
// (but for leaks), and has what was flushed.
func TestPowerFailsAnywhere(t *testing.T) {
	const size = 4 << 20
	b, err := os.ReadFile(create(t, size, "cluster_size=4k"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "crashed")
	for seed := range uint64(80) {
		r := rand.New(rand.NewPCG(seed, 7))
		f := &cutting{failing: newFailing(b), at: 1 + r.IntN(150), r: r}
		i, err := qcow2.Open(f, false)
		if err != nil {
			t.Fatal(err)
		}
		model := make([]byte, size)
		churn(t, r, i, model, 60)
		flushed := bytes.Clone(model)
		if err := i.Flush(); err != nil {
			t.Fatal(err)
		}
		f.armed = true
		// From here on only sectors of the second half are written, so that
		// those of the first are known; and few of them, so that clusters are
		// used again and again.
		churn(t, r, upper{i}, model[size/2:size/2+256<<10], 100)
		if err := i.Flush(); err != nil {
			t.Fatal(err)
		}
		if f.image == nil {
			f.image = f.crash(r)
		}
		if err := os.WriteFile(path, f.image, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("qemu-img", "check", path).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) { // 3: leaks
			t.Fatalf("seed %d, write %d: %v\n%s", seed, f.at, err, out)
		}
		again := mustOpen(t, path, 0)
		got := make([]byte, size/2)
		if err := again.Readv([][]byte{got}, 0); err != nil || !bytes.Equal(got, flushed[:size/2]) {
			t.Fatalf("seed %d, write %d: what was flushed is lost, %v", seed, f.at, err)
		}
	}
}

// cutting keeps what is left if power fails at one of its writes.
type cutting struct {
	*failing
	at    int
	r     *rand.Rand
	armed bool
	image []byte
}

func (c *cutting) Writev(p [][]byte, off int64) error {
	err := c.failing.Writev(p, off)
	if c.armed {
		if c.at--; c.at == 0 {
			c.image = c.crash(c.r)
		}
	}
	return err
}

// upper is the second half of a disk.
type upper struct{ *qcow2.Image }

func (u upper) half() int64                        { n, _ := u.Size(); return n / 2 }
func (u upper) Readv(p [][]byte, off int64) error  { return u.Image.Readv(p, off+u.half()) }
func (u upper) Writev(p [][]byte, off int64) error { return u.Image.Writev(p, off+u.half()) }
func (u upper) Discard(off, n int64) error         { return u.Image.Discard(off+u.half(), n) }
func (u upper) WriteZeroes(off, n int64, unmap bool) error {
	return u.Image.WriteZeroes(off+u.half(), n, unmap)
}

func TestAFullFileSystemLosesNothing(t *testing.T) {
	b, err := os.ReadFile(create(t, 4<<20, "cluster_size=4k"))
	if err != nil {
		t.Fatal(err)
	}
	f := newFailing(b)
	i, err := qcow2.Open(f, false)
	if err != nil {
		t.Fatal(err)
	}
	r, model := rand.New(rand.NewPCG(5, 5)), make([]byte, 4<<20)
	for range 20 {
		churn(t, r, i, model, 30)
		f.err = unix.ENOSPC
		if err := i.Flush(); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("flush: %v", err)
		}
		if err := i.Writev([][]byte{make([]byte, 4096)}, 8192); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("write: %v", err)
		}
		f.err = nil
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, f.synced, 0o600); err != nil {
		t.Fatal(err)
	}
	same(t, path, model)
}

func TestManyUseAnImageAtOnce(t *testing.T) {
	const part = 4 << 20
	path := create(t, 4*part, "cluster_size=8k")
	i := mustOpen(t, path, 0)
	model := make([]byte, 4*part)
	var all sync.WaitGroup
	for k := range 4 {
		all.Go(func() {
			churn(t, rand.New(rand.NewPCG(uint64(k), 1)), window{i, int64(k * part)}, model[k*part:(k+1)*part], 250)
		})
	}
	all.Wait()
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	same(t, path, model)
}

type window struct {
	*qcow2.Image
	at int64
}

func (w window) Readv(p [][]byte, off int64) error  { return w.Image.Readv(p, off+w.at) }
func (w window) Writev(p [][]byte, off int64) error { return w.Image.Writev(p, off+w.at) }
func (w window) Discard(off, n int64) error         { return w.Image.Discard(off+w.at, n) }
func (w window) WriteZeroes(off, n int64, unmap bool) error {
	return w.Image.WriteZeroes(off+w.at, n, unmap)
}

func TestAGuestHasItAsADisk(t *testing.T) {
	path := create(t, 4<<20, "compat=1.1")
	d, err := blk.New(mustOpen(t, path, 0), blk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := virtiotest.Plug(t, d)
	g.Start(g.Offered())
	header := func(kind byte) []byte { return slices.Concat([]byte{kind}, make([]byte, 15)) }
	data := bytes.Repeat([]byte("sector! "), 64)
	for range 3 {
		r := g.Queues[0].Do([][]byte{header(1), data}, 1)
		r2 := g.Queues[0].Do([][]byte{header(4)}, 1)
		r3 := g.Queues[0].Do([][]byte{header(0)}, 512, 1)
		if r.Writable[0][0] != 0 || r2.Writable[0][0] != 0 || r3.Writable[1][0] != 0 || !bytes.Equal(r3.Writable[0], data) {
			t.Fatalf("status %d %d %d, %v", r.Writable[0], r2.Writable[0], r3.Writable[1], d.Metrics().LastError)
		}
	}
}

// FuzzImage opens anything, and uses what can be opened.
func FuzzImage(f *testing.F) {
	for _, o := range []string{"cluster_size=512", "cluster_size=512,compat=0.10"} {
		b, err := os.ReadFile(create(f, 64<<10, o))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint64(1))
		m := newFailing(b)
		i, err := qcow2.Open(m, false)
		if err != nil {
			f.Fatal(err)
		}
		if err := errors.Join(i.Writev([][]byte{make([]byte, 8192)}, 4096), i.Close()); err != nil {
			f.Fatal(err)
		}
		f.Add(m.now, uint64(2))
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint64) {
		m := newFailing(b)
		i, err := qcow2.Open(m, seed%7 == 0)
		if err != nil || seed%7 == 0 {
			return
		}
		size, _ := i.Size()
		if size == 0 || size > 1<<40 {
			return
		}
		r := rand.New(rand.NewPCG(seed, 1))
		for range 20 {
			off := r.Int64N(size) &^ 511
			n := min(size-off, 1<<14)
			_ = i.Readv([][]byte{make([]byte, n)}, off)
			_ = i.Writev([][]byte{make([]byte, n)}, off)
			_ = i.Discard(off, n)
			_ = i.Flush()
		}
		if len(m.now) > len(b)+1<<24 {
			t.Errorf("a file of %d bytes became %d", len(b), len(m.now))
		}
	})
}
