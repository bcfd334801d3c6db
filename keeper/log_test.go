package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

var someTime = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

func newTestWriter(t testing.TB, dir string, limit int64) *logWriter {
	t.Helper()
	w, err := newLogWriter(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func TestLogFileIsLinesWithTimeStreamAndFlag(t *testing.T) {
	dir := t.TempDir()
	w := newTestWriter(t, dir, logLimit)
	w.write(someTime, streamStdout, []byte("one\ntw"))
	w.write(someTime, streamStderr, []byte("\n"))
	w.write(someTime, streamStdout, []byte("o\n\x00\xff"))
	want := `2026-01-02T03:04:05.000000006Z stdout F one
2026-01-02T03:04:05.000000006Z stdout P tw
2026-01-02T03:04:05.000000006Z stderr F 
2026-01-02T03:04:05.000000006Z stdout F o
` + "2026-01-02T03:04:05.000000006Z stdout P \x00\xff\n"
	got, err := os.ReadFile(filepath.Join(dir, logCurrent))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	var entries []LogEntry
	if err := ReadLogs(t.Context(), dir, LogOptions{}, func(e LogEntry) error { entries = append(entries, e); return nil }); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]LogEntry{
		{someTime, streamStdout, []byte("one\n")},
		{someTime, streamStdout, []byte("tw")},
		{someTime, streamStderr, []byte("\n")},
		{someTime, streamStdout, []byte("o\n")},
		{someTime, streamStdout, []byte("\x00\xff")},
	}, entries); diff != "" {
		t.Error(diff)
	}
}

func TestReadLogsChoosesBySinceAndTail(t *testing.T) {
	dir := t.TempDir()
	w := newTestWriter(t, dir, 1500)
	for i := range 40 { // some 24 in a file
		at := someTime.Add(time.Duration(i) * time.Second)
		w.write(at, streamStdout, fmt.Appendf(nil, "begin %d ", i))
		w.write(at, streamStdout, []byte("end\n"))
	}
	lines := func(from, to int) (s string) {
		for i := from; i < to; i++ {
			s += fmt.Sprintf("begin %d end\n", i)
		}
		return s
	}
	everything := readStream(t, dir, streamStdout, LogOptions{})
	if !strings.HasSuffix(lines(0, 40), everything) || strings.Count(everything, "\n") < 20 {
		t.Fatalf("two files hold %q", everything)
	}
	tests := []struct {
		opts LogOptions
		want string
	}{
		{LogOptions{Tail: 1}, lines(39, 40)},
		{LogOptions{Tail: 17}, lines(23, 40)},
		{LogOptions{Tail: 1000}, everything},
		{LogOptions{Since: someTime.Add(35 * time.Second)}, lines(35, 40)},
		{LogOptions{Since: someTime.Add(time.Hour)}, ""},
		{LogOptions{Since: someTime.Add(35 * time.Second), Tail: 2}, lines(38, 40)},
		{LogOptions{Since: someTime.Add(38 * time.Second), Tail: 30}, lines(38, 40)},
	}
	for _, test := range tests {
		if diff := cmp.Diff(test.want, readStream(t, dir, streamStdout, test.opts)); diff != "" {
			t.Errorf("%+v: %s", test.opts, diff)
		}
	}
}

func TestRotationBoundsTheDisk(t *testing.T) {
	dir := t.TempDir()
	const limit = 100 << 10
	w := newTestWriter(t, dir, limit)
	piece := []byte(strings.Repeat("y\n", bufferSize/2)) // makes 40 bytes of record of each 2
	for range 20 {
		w.write(time.Now(), streamStdout, piece[:1000])
	}
	for range 20 {
		w.write(time.Now(), streamStdout, piece)
	}
	var total int64
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	// A single piece may be larger than the limit of this test.
	if most := int64(2 * max(limit, 22*len(piece))); len(entries) != 2 || total > most {
		t.Errorf("%d files with %d bytes, want 2 with at most %d", len(entries), total, most)
	}
}

func TestFollowGoesThroughRotationsUntilEnded(t *testing.T) {
	dir := t.TempDir()
	w := newTestWriter(t, dir, 4000)
	const lines = 2000
	ended := make(chan struct{})
	read := make(chan int)
	go func() {
		defer close(ended)
		for i := range lines {
			w.write(time.Now(), streamStdout, fmt.Appendf(nil, "line %d\n", i))
			if i%10 == 0 { // else the reader is left behind by more than two files
				for n := range read {
					if n >= i {
						break
					}
				}
			}
		}
	}()
	next := 0
	err := ReadLogs(t.Context(), dir, LogOptions{Follow: true, Ended: ended}, func(e LogEntry) error {
		if want := fmt.Sprintf("line %d\n", next); string(e.Data) != want {
			return fmt.Errorf("got %q, want %q", e.Data, want)
		}
		select {
		case read <- next:
		case <-ended:
		default:
			if next%10 == 0 {
				select {
				case read <- next:
				case <-ended:
				}
			}
		}
		next++
		return nil
	})
	if err != nil || next != lines {
		t.Errorf("%d lines of %d, %v", next, lines, err)
	}
}

func TestFollowEndsWithContextOrDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	nothing := func(LogEntry) error { return nil }
	if err := ReadLogs(t.Context(), dir, LogOptions{}, nothing); err != nil {
		t.Errorf("a log that is not there: %v", err)
	}
	wantCode(t, ReadLogs(t.Context(), dir, LogOptions{Follow: true}, nothing), api.CodeNotFound)

	w := newTestWriter(t, dir, logLimit)
	w.write(time.Now(), streamStdout, []byte("a line\n"))
	ctx, cancel := context.WithCancel(t.Context())
	err := ReadLogs(ctx, dir, LogOptions{Follow: true}, func(LogEntry) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	w.close()
	err = ReadLogs(t.Context(), dir, LogOptions{Follow: true}, func(LogEntry) error { return os.RemoveAll(dir) })
	if err != nil {
		t.Errorf("removed: %v", err)
	}
}

func TestReaderPassesOverWhatIsNoRecord(t *testing.T) {
	dir := t.TempDir()
	good := string(appendRecords(nil, someTime, streamStdout, []byte("good\n")))
	text := good + "garbage\n" + strings.Repeat("x", 5*maxRecord) + "\n" + good + "\n" + good + good[:20]
	if err := os.WriteFile(filepath.Join(dir, logCurrent), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := readStream(t, dir, streamStdout, LogOptions{}); got != "good\ngood\ngood\n" {
		t.Errorf("got %q", got)
	}
	// The next writer ends the unfinished record, and goes on.
	w := newTestWriter(t, dir, logLimit)
	w.write(someTime, streamStdout, []byte("better\n"))
	if got := readStream(t, dir, streamStdout, LogOptions{}); got != "good\ngood\ngood\nbetter\n" {
		t.Errorf("after mending: %q", got)
	}
}

// smallDisk is a file system with little room.
func smallDisk(t testing.TB, size string) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestFullDiskLosesOutputAndSaysSo(t *testing.T) {
	disk := smallDisk(t, "256k")
	dir := filepath.Join(disk, "log")
	w := newTestWriter(t, dir, logLimit)
	w.write(someTime, streamStdout, []byte("first\n"))
	ballast := filepath.Join(disk, "ballast")
	os.WriteFile(ballast, make([]byte, 1<<20), 0o600) // as far as it goes
	line := append(bytes.Repeat([]byte("x"), 999), '\n')
	for range 20 {
		w.write(someTime, streamStdout, line)
	}
	if w.lost == 0 {
		t.Fatal("the disk is not full")
	}
	lost := w.lost
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	w.write(someTime, streamStderr, []byte("last\n"))
	remark := readStream(t, dir, streamKeeper, LogOptions{})
	if want := fmt.Sprintf("%d bytes of output are missing here", lost); !strings.HasPrefix(remark, want) {
		t.Errorf("remark %q, want %q", remark, want)
	}
	if got := readStream(t, dir, streamStderr, LogOptions{}); got != "last\n" {
		t.Errorf("stderr %q", got)
	}
	got := readStream(t, dir, streamStdout, LogOptions{})
	if whole := "first\n" + strings.Repeat(string(line), 20-int(lost)/len(line)); got != whole {
		t.Errorf("%d bytes of stdout, want %d: only whole pieces", len(got), len(whole))
	}
}

func TestFullDiskEndsNeitherGuestNorKeeper(t *testing.T) {
	k := newKeeper(t)
	disk := smallDisk(t, "64k")
	r := k.request("a", "lines", "20000")
	r.LogDir = filepath.Join(disk, "log")
	k.start(r)
	if g := k.wait("a"); g.ExitCode != 0 || !g.ExitKnown {
		t.Errorf("end %+v", g)
	}
}

func TestFloodIsBoundedByRotation(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 40 MiB of log")
	}
	k := newKeeper(t)
	r := k.request("a", "lines", "500000")
	k.start(r)
	k.wait("a")
	var total int64
	for _, name := range []string{logCurrent, logPrevious} {
		st, err := os.Stat(filepath.Join(r.LogDir, name))
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	if total > 2*logLimit || total < logLimit {
		t.Errorf("the log has %d bytes", total)
	}
	for stream, want := range map[string]string{streamStdout: "out 499999\n", streamStderr: "err 499999\n"} {
		if got := readStream(t, r.LogDir, stream, LogOptions{}); !strings.HasSuffix(got, want) {
			t.Errorf("%s ends with %q", stream, got[max(0, len(got)-100):])
		}
	}
}

func BenchmarkLogWrite(b *testing.B) {
	w := newTestWriter(b, b.TempDir(), logLimit)
	piece := []byte(strings.Repeat(strings.Repeat("x", 79)+"\n", bufferSize/80))
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		w.write(someTime, streamStdout, piece)
	}
}

func BenchmarkLogRead(b *testing.B) {
	dir := b.TempDir()
	w := newTestWriter(b, dir, logLimit)
	piece := []byte(strings.Repeat(strings.Repeat("x", 79)+"\n", bufferSize/80))
	for range 200 {
		w.write(someTime, streamStdout, piece)
	}
	b.SetBytes(200 * int64(len(piece)))
	for b.Loop() {
		if err := ReadLogs(b.Context(), dir, LogOptions{Tail: 10}, func(LogEntry) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
