package keeper

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-project/cleave/api"
)

// recordReader reads records from one log file, which may grow meanwhile.
type recordReader struct {
	f          *os.File
	limit      int64 // how far to read; negative for all
	read       int64 // how far it was read
	buf        []byte
	start, end int  // what of buf is still to be parsed
	skipping   bool // the rest of a line that is no record
}

func newRecordReader(f *os.File) *recordReader {
	return &recordReader{f: f, limit: -1, buf: make([]byte, 2*maxRecord)}
}

// next is the next whole record. At the end of the file it reports false, and
// may be asked again later. What is no record is passed over. The record is
// valid until the next call.
func (r *recordReader) next() (rec record, ok bool, err error) {
	for {
		if n := bytes.IndexByte(r.buf[r.start:r.end], '\n'); n >= 0 {
			line := r.buf[r.start : r.start+n]
			r.start += n + 1
			if r.skipping {
				r.skipping = false
			} else if rec, ok := parseRecord(line); ok {
				return rec, true, nil
			}
			continue
		}
		more, err := r.fill()
		if err != nil || !more {
			return rec, false, err
		}
	}
}

// position is where the next record begins.
func (r *recordReader) position() int64 { return r.read - int64(r.end-r.start) }

func (r *recordReader) fill() (more bool, err error) {
	if r.start == 0 && r.end == len(r.buf) {
		r.skipping, r.end = true, 0
	}
	r.end = copy(r.buf, r.buf[r.start:r.end])
	r.start = 0
	room := r.buf[r.end:]
	if r.limit >= 0 {
		room = room[:min(int64(len(room)), max(r.limit-r.read, 0))]
	}
	if len(room) == 0 {
		return false, nil
	}
	n, err := r.f.Read(room)
	r.end += n
	r.read += int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n > 0, err
}

// seek goes to the beginning of a record.
func (r *recordReader) seek(offset int64) error {
	_, err := r.f.Seek(offset, io.SeekStart)
	r.read, r.start, r.end, r.skipping = offset, 0, 0, false
	return err
}

// logReader reads the log files of one directory, in order.
type logReader struct {
	dir   string
	since time.Time
	yield func(LogEntry) error
	files []*recordReader // the last one is the current one, and is always there
}

// ReadLogs yields a guest's output from the log files in dir, oldest first.
// It needs no keeper. An error of yield ends it and is returned. A directory
// without a log has no entries; to follow it is an error with code
// "not-found" if the directory is not there either.
func ReadLogs(ctx context.Context, dir string, opts LogOptions, yield func(LogEntry) error) error {
	var events *os.File
	if opts.Follow {
		var err error
		if events, err = watchDir(dir); err != nil {
			return err
		}
		defer events.Close()
	}
	r := &logReader{dir: dir, since: opts.Since, yield: yield}
	defer r.close()
	if err := r.open(); err != nil {
		return err
	}
	if opts.Tail > 0 {
		if err := r.seekTail(opts.Tail); err != nil {
			return err
		}
	}
	if err := r.drain(ctx); err != nil || !opts.Follow {
		return err
	}
	return r.follow(ctx, events, opts.Ended)
}

func (r *logReader) close() {
	for _, f := range r.files {
		f.f.Close()
	}
	r.files = nil
}

// open opens the files that are there: the current one first, since a
// rotation in between then shows as the same file under both names, and no
// file is missed.
func (r *logReader) open() error {
	current, err := r.openFile(logCurrent)
	if err != nil {
		return err
	}
	previous, err := r.openFile(logPrevious)
	if err != nil {
		if current != nil {
			current.Close()
		}
		return err
	}
	if previous != nil && current != nil && sameFile(previous, current) {
		previous.Close()
		previous = nil
	}
	for _, f := range []*os.File{previous, current} {
		if f != nil {
			r.files = append(r.files, newRecordReader(f))
		}
	}
	return nil
}

// openFile answers nil for a file that is not there.
func (r *logReader) openFile(name string) (*os.File, error) {
	f, err := os.Open(filepath.Join(r.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "read the log: %w", err)
	}
	return f, nil
}

func sameFile(a, b *os.File) bool {
	sa, erra := a.Stat()
	sb, errb := b.Stat()
	return erra == nil && errb == nil && os.SameFile(sa, sb)
}

// drain yields what there is, through any rotation.
func (r *logReader) drain(ctx context.Context) error {
	for {
		for len(r.files) > 0 {
			if err := r.drainFile(ctx, r.files[0]); err != nil {
				return err
			}
			if len(r.files) == 1 {
				break
			}
			r.files[0].f.Close()
			r.files = r.files[1:]
		}
		rotated, err := r.advance()
		if err != nil || !rotated {
			return err
		}
	}
}

func (r *logReader) drainFile(ctx context.Context, f *recordReader) error {
	for {
		rec, ok, err := f.next()
		if err != nil {
			return api.Errorf(api.CodeInternal, "read the log: %w", err)
		}
		if !ok {
			return nil
		}
		if rec.time.Before(r.since) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := r.yield(rec.entry()); err != nil {
			return err
		}
	}
}

// advance looks whether the current file has been rotated, and opens what
// comes after it. A rotated file is complete: it is drained once more.
func (r *logReader) advance() (bool, error) {
	if len(r.files) == 0 {
		err := r.open()
		return len(r.files) > 0, err
	}
	last := r.files[0]
	next := &logReader{dir: r.dir}
	if err := next.open(); err != nil {
		return false, err
	}
	switch {
	case len(next.files) > 0 && sameFile(next.files[0].f, last.f):
		// It is the previous one of two, or still the current one.
		next.files[0].f.Close()
		next.files = next.files[1:]
	case len(next.files) == 2 && sameFile(next.files[1].f, last.f):
		next.close()
	case len(next.files) == 2:
		text := "output is missing here: it was rotated away before it was read\n"
		if err := r.yield(LogEntry{Time: time.Now().UTC(), Stream: streamKeeper, Data: []byte(text)}); err != nil {
			next.close()
			return false, err
		}
	}
	r.files = append(r.files, next.files...)
	return len(next.files) > 0, nil
}

// seekTail moves to where the last n lines begin.
func (r *logReader) seekTail(n int) error {
	type place struct {
		file   int
		offset int64
	}
	var lines []place // a ring once it holds n, of which next is the oldest
	next := 0
	open := make(map[string]bool) // streams in the middle of a line
	for i, f := range r.files {
		for {
			at := f.position()
			rec, ok, err := f.next()
			if err != nil {
				return api.Errorf(api.CodeInternal, "read the log: %w", err)
			}
			if !ok {
				break
			}
			if !rec.time.Before(r.since) && !open[rec.stream] {
				if len(lines) < n {
					lines = append(lines, place{i, at})
				} else {
					lines[next] = place{i, at}
					next = (next + 1) % n
				}
			}
			open[rec.stream] = !rec.full
		}
	}
	start := place{}
	if len(lines) > 0 {
		start = lines[next]
	}
	for i, f := range r.files {
		offset := int64(0)
		if i == start.file {
			offset = start.offset
		}
		if err := f.seek(offset); err != nil {
			return api.Errorf(api.CodeInternal, "read the log: %w", err)
		}
	}
	for _, f := range r.files[:start.file] {
		f.f.Close()
	}
	r.files = r.files[start.file:]
	return nil
}
