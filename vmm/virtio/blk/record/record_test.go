package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

const (
	block = blk.TrackedBlock
	size  = 100*block + 4096
)

// files are those of a disk, in a directory of the test.
type files struct {
	t            *testing.T
	disk, record string
}

func newFiles(t *testing.T) *files {
	t.Helper()
	dir := t.TempDir()
	f := &files{t, filepath.Join(dir, "disk"), filepath.Join(dir, "record")}
	f.write(f.disk, make([]byte, size))
	f.write(f.record, nil)
	return f
}

func (f *files) write(name string, b []byte) {
	f.t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) open(name string) *os.File {
	f.t.Helper()
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { file.Close() })
	return file
}

// begin is a process that has the disk.
func (f *files) begin() *Record {
	f.t.Helper()
	r, err := Open(f.open(f.record), f.open(f.disk), size)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// end is one's end in order.
func (f *files) end(r *Record) {
	f.t.Helper()
	if err := r.Keep(size); err != nil {
		f.t.Fatal(err)
	}
}

func mark(t *testing.T, r *Record) string {
	t.Helper()
	m, err := r.Mark()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// isSince compares what was changed since a mark.
func isSince(t *testing.T, r *Record, mark string, want ...blk.Range) {
	t.Helper()
	got, lost, err := r.Since(mark, size)
	if err != nil || lost != "" {
		t.Fatalf("mark %s: %s, %v", mark, lost, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mark %s: %s", mark, diff)
	}
}

// isLost checks that a mark isn't known for some reason.
func isLost(t *testing.T, r *Record, mark, why string) {
	t.Helper()
	got, lost, err := r.Since(mark, size)
	if err != nil || !strings.Contains(lost, why) || lost == "" || got != nil {
		t.Errorf("mark %s: %q instead of %q, %v, %v", mark, lost, why, got, err)
	}
}

func TestMarksAreKnownAfterAnEndInOrder(t *testing.T) {
	f := newFiles(t)
	r := f.begin()
	isLost(t, r, "0123456789abcdef", "no marks were kept")
	one := mark(t, r)
	r.Change(3*block+7, 1)
	two := mark(t, r)
	r.Change(100*block, 4096)
	f.end(r)
	for range 3 { // ends, of which one changes nothing
		r = f.begin()
		isSince(t, r, one, blk.Range{Offset: 3 * block, Size: block}, blk.Range{Offset: 100 * block, Size: 4096})
		isSince(t, r, two, blk.Range{Offset: 100 * block, Size: 4096})
		f.end(r)
	}
	r = f.begin()
	if err := r.Forget(one); err != nil {
		t.Error(err)
	}
	if err := r.Forget(one); err != nil {
		t.Errorf("a mark that isn't known: %v", err)
	}
	isLost(t, r, one, "forgotten")
	r.Change(99*block, 1)
	f.end(r)
	r = f.begin()
	isSince(t, r, two, blk.Range{Offset: 99 * block, Size: block + 4096})
	isLost(t, r, one, "forgotten")
	for _, no := range []string{"", "12", "0123456789abcdeg", strings.Repeat("0", 17)} {
		if _, _, err := r.Since(no, size); err == nil || r.Forget(no) == nil {
			t.Errorf("%q is taken for a mark", no)
		}
	}
}

func TestMarksAreLostWithoutAnEndInOrder(t *testing.T) {
	f := newFiles(t)
	r := f.begin()
	m := mark(t, r)
	f.end(r)
	r = f.begin() // and is killed
	isSince(t, r, m)
	next := f.begin()
	isLost(t, next, m, "didn't end in order")
	other := mark(t, next)
	isLost(t, f.begin(), other, "didn't end in order")
	isLost(t, f.begin(), m, "didn't end in order")
}

func TestMarksAreLostWhenAnotherChangesTheDisk(t *testing.T) {
	for name, change := range map[string]func(f *files) error{
		"written": func(f *files) error {
			_, err := f.open(f.disk).WriteAt([]byte{1}, 5)
			return err
		},
		"larger": func(f *files) error { return os.Truncate(f.disk, size+512) },
		"replaced": func(f *files) error {
			if err := os.Rename(f.disk, f.disk+".old"); err != nil {
				return err
			}
			b, err := os.ReadFile(f.disk + ".old")
			return errors.Join(err, os.WriteFile(f.disk, b, 0o600))
		},
		"written, and its time set back": func(f *files) error {
			st, err := os.Stat(f.disk)
			if err != nil {
				return err
			}
			_, err = f.open(f.disk).WriteAt([]byte{1}, 5)
			return errors.Join(err, os.Chtimes(f.disk, st.ModTime(), st.ModTime()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			r := f.begin()
			m := mark(t, r)
			f.end(r)
			if err := change(f); err != nil {
				t.Fatal(err)
			}
			isLost(t, f.begin(), m, "changed by another")
			isLost(t, f.begin(), m, "")
		})
	}
}

// TestTheSmallestDelayTells writes to the disk at once after an end in order,
// many times: each time it must be seen.
func TestTheSmallestDelayTells(t *testing.T) {
	f := newFiles(t)
	disk := f.open(f.disk)
	for range 20 {
		r := f.begin()
		m := mark(t, r)
		if _, err := disk.WriteAt([]byte{1}, 0); err != nil {
			t.Fatal(err)
		}
		f.end(r)
		if _, err := disk.WriteAt([]byte{2}, 0); err != nil {
			t.Fatal(err)
		}
		isLost(t, f.begin(), m, "changed by another")
	}
}

func TestADiskWithAnotherSizeIsAnother(t *testing.T) {
	f := newFiles(t)
	r := f.begin()
	m := mark(t, r)
	f.end(r)
	r, err := Open(f.open(f.record), f.open(f.disk), size-512)
	if err != nil {
		t.Fatal(err)
	}
	isLost(t, r, m, "changed by another")
}

func TestARecordBegunAnewKnowsNoMarks(t *testing.T) {
	f := newFiles(t)
	r := f.begin()
	m := mark(t, r)
	f.end(r)
	r, err := New(f.open(f.record), f.open(f.disk), size, "it was elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	isLost(t, r, m, "it was elsewhere")
	f.end(r)
	isLost(t, f.begin(), m, "no marks were kept")
}

func TestMarksAreBounded(t *testing.T) {
	f := newFiles(t)
	r := f.begin()
	var last string
	for range MaxMarks {
		last = mark(t, r)
	}
	if m, err := r.Mark(); err == nil || !strings.Contains(err.Error(), "forget") {
		t.Errorf("one mark too many: %q, %v", m, err)
	}
	if err := r.Forget(last); err != nil {
		t.Error(err)
	}
	mark(t, r)
	for b := range int64(100) {
		r.Change(b*block, 1)
	}
	f.end(r)
	if r = f.begin(); r.Marks() != MaxMarks {
		t.Errorf("%d marks were kept", r.Marks())
	}
}

func TestWithoutAFileMarksLiveAsLongAsTheProcess(t *testing.T) {
	f := newFiles(t)
	r, err := Open(nil, f.open(f.disk), size)
	if err != nil {
		t.Fatal(err)
	}
	m := mark(t, r)
	r.Change(0, 1)
	isSince(t, r, m, blk.Range{Size: block})
	isLost(t, r, "0123456789abcdef", "beyond the end of the process")
	f.end(r)
}

func TestARecordThatIsntWholeIsTold(t *testing.T) {
	f := newFiles(t)
	r := f.begin()
	m := mark(t, r)
	r.Change(5*block, block)
	f.end(r)
	whole, err := os.ReadFile(f.record)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		b := append([]byte(nil), whole...)
		b[i] ^= 0x10
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		why     string
	}{
		"empty":        {nil, "no marks were kept"},
		"its name":     {whole[:3], "damaged"},
		"in use":       {whole[:len(magic)], "in order"},
		"cut":          {whole[:len(whole)-1], "damaged"},
		"cut short":    {whole[:sumEnd+3], "damaged"},
		"longer":       {append(whole[:len(whole):len(whole)], 0), "damaged"},
		"much longer":  {append(whole[:len(whole):len(whole)], make([]byte, 1<<20)...), "damaged"},
		"a bit":        {flip(len(whole) - 1), "damaged"},
		"another mark": {flip(sumEnd + headSize), "damaged"},
		"a later one":  {flip(len(magic) - 1), "edition"},
	} {
		f.write(f.record, c.content)
		r := f.begin()
		if isLost(t, r, m, c.why); t.Failed() {
			t.Fatal(name)
		}
		// It is good for others from then on.
		m := mark(t, r)
		f.end(r)
		isSince(t, f.begin(), m)
	}
	for name, content := range map[string]string{"short": "hi", "long": strings.Repeat("root:x:0:0:\n", 10)} {
		f.write(f.record, []byte(content))
		if _, err := Open(f.open(f.record), f.open(f.disk), size); !errors.Is(err, errForeign) {
			t.Errorf("%s: what is something else is a record: %v", name, err)
		}
		if b, err := os.ReadFile(f.record); err != nil || string(b) != content {
			t.Errorf("%s: it was written over: %q, %v", name, b, err)
		}
	}
	f.write(f.record, whole)
	isSince(t, f.begin(), m, blk.Range{Offset: 5 * block, Size: block})
}

func TestADeviceKeepsNoMarks(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	f := newFiles(t)
	r, err := Open(f.open(f.record), null, size)
	if err != nil {
		t.Fatal(err)
	}
	m := mark(t, r)
	isSince(t, r, m)
	if r.Keep(size) == nil {
		t.Error("they are kept")
	}
	isLost(t, f.begin(), m, "no marks were kept")
	if _, err := Open(null, f.open(f.disk), size); !errors.Is(err, errForeign) {
		t.Errorf("a device is a record: %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	of := state{Inode: 7, Size: size, Seconds: 1 << 30, Nanoseconds: 5}
	whole := encode(of, []blk.Span{{Mark: 1, Bits: []uint64{0, 5}}, {Mark: 2}, {Mark: 3, Bits: []uint64{1}}})
	f.Add(whole[sumEnd:])
	f.Add(whole[sumEnd : len(whole)-9])
	f.Add([]byte(magic))
	f.Add([]byte(magicName[:3]))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, _ = decode(b)
		if len(b) < headSize {
			return
		}
		of, spans, err := decodeBody(b)
		if err != nil {
			return
		}
		again, same, err := decode(encode(of, spans))
		if err != nil || again != of || len(same) != len(spans) {
			t.Fatalf("%+v and %d marks are %+v and %d: %v", of, len(spans), again, len(same), err)
		}
		c := blk.NewChanges(spans...)
		c.Change(0, min(of.Size, 1<<30))
		c.Mark()
		for i := range spans {
			c.Since(spans[i].Mark)
			c.Forget(spans[i].Mark)
		}
	})
}
