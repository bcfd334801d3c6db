package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a log directory: what is being written, and what came before.
const (
	logCurrent  = "log"
	logPrevious = "log.1"
)

// logLimit is the size at which a log file makes room for the next; a guest
// that floods its output owns twice that much of the host's disk.
const logLimit = 10 << 20

// logWriter appends records to a guest's log files. It never fails: what
// can't be written, on a full disk say, is counted, and a record of the
// stream "keeper" says so as soon as there is room again. It is not safe for
// concurrent use.
type logWriter struct {
	dir   string
	limit int64

	fd   int // -1 while it can't be opened
	size int64

	lost    int64 // bytes of output not written since the last record
	lostWhy error
}

func newLogWriter(dir string, limit int64) (*logWriter, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w := &logWriter{dir: dir, limit: limit, fd: -1}
	return w, w.open()
}

func (w *logWriter) open() error {
	path := filepath.Join(w.dir, logCurrent)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	w.fd, w.size = fd, st.Size
	w.mend()
	return nil
}

// mend ends a record that a killed keeper left unfinished.
func (w *logWriter) mend() {
	if w.size == 0 {
		return
	}
	var last [1]byte
	if _, err := unix.Pread(w.fd, last[:], w.size-1); err == nil && last[0] != '\n' {
		if n, err := unix.Write(w.fd, []byte{'\n'}); err == nil {
			w.size += int64(n)
		}
	}
}

// write records what a guest wrote to a stream.
func (w *logWriter) write(now time.Time, stream string, data []byte) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	records := (*buf)[:0]
	if w.lost > 0 {
		records = appendRecords(records, now, streamKeeper, w.remark())
	}
	records = appendRecords(records, now, stream, data)
	if err := w.append(records); err != nil {
		w.lost += int64(len(data))
		w.lostWhy = err
	} else {
		w.lost, w.lostWhy = 0, nil
	}
	if cap(records) <= bufferSize { // else a burst of short lines
		*buf = records
	}
}

func (w *logWriter) remark() []byte {
	return fmt.Appendf(nil, "%d bytes of output are missing here: the log could not be written: %v\n", w.lost, w.lostWhy)
}

// append writes whole records or nothing, into a file with room for them.
func (w *logWriter) append(records []byte) error {
	if w.fd >= 0 && w.size > 0 && w.size+int64(len(records)) > w.limit {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	if w.fd < 0 {
		if err := w.open(); err != nil {
			return err
		}
	}
	written := 0
	for written < len(records) {
		n, err := unix.Write(w.fd, records[written:])
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.ENOSPC
		}
		if err != nil {
			// Half a record would swallow the beginning of the next.
			if written > 0 && unix.Ftruncate(w.fd, w.size) != nil {
				w.size += int64(written)
				w.mend()
			}
			return err
		}
		written += n
	}
	w.size += int64(written)
	return nil
}

// rotate starts a new file. Readers know it by the inode number.
func (w *logWriter) rotate() error {
	current := filepath.Join(w.dir, logCurrent)
	err := os.Rename(current, filepath.Join(w.dir, logPrevious))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unix.Close(w.fd)
	w.fd = -1
	return nil
}

// close writes what is still to be said.
func (w *logWriter) close() {
	if w.lost > 0 {
		_ = w.append(appendRecords(nil, time.Now(), streamKeeper, w.remark()))
	}
	if w.fd >= 0 {
		unix.Close(w.fd)
		w.fd = -1
	}
}
