package boot

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// withHatch is a serial line with the hatch that is on the control disk. A
// host that made a smaller disk knows of none, and a virtio port needs none.
func withHatch(p *port, control *os.File) io.ReadWriteCloser {
	if !p.tty {
		return p
	}
	size, err := control.Seek(0, io.SeekEnd)
	if err != nil || size < vitals.HatchOffset+link.HatchSize {
		return p
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", control.Fd()), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return p
	}
	return &hatched{p, &direct{f: f}}
}

// hatched is a port that is a link.HatchReader.
type hatched struct {
	*port
	hatch *direct
}

func (h *hatched) Hatch() io.ReaderAt {
	return io.NewSectionReader(h.hatch, vitals.HatchOffset, link.HatchSize)
}

func (h *hatched) Close() error { return errors.Join(h.port.Close(), h.hatch.f.Close()) }

// direct reads what the host has written to a disk since: what is cached in
// here is older. One Read at a time.
type direct struct {
	f   *os.File
	buf []byte // on a page's boundary
}

// block is what direct reads are multiples of, and on a boundary of.
const block = 4 << 10

// ReadAt implements io.ReaderAt for what begins on a boundary.
func (d *direct) ReadAt(p []byte, off int64) (n int, err error) {
	size := (len(p) + block - 1) / block * block
	if size > len(d.buf) {
		if d.buf != nil {
			_ = unix.Munmap(d.buf)
		}
		if d.buf, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE); err != nil {
			return 0, err
		}
	}
	n, err = unix.Pread(int(d.f.Fd()), d.buf[:size], off)
	if n = copy(p, d.buf[:max(n, 0)]); n < len(p) {
		return n, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return n, nil
}
