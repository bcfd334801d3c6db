package blk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Types of requests, and their status (5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK          = 0
	statusIOError     = 1
	statusUnsupported = 2
)

const (
	headerSize = 16
	rangeSize  = 16
	idSize     = 20
	flagUnmap  = 1
)

var (
	// errUnsupported is what is told by a status of its own.
	errUnsupported = errors.New("not supported")
	// errGuest is a request that can't be met whatever the disk does.
	errGuest = errors.New("not to be met")
)

// request is one of the guest, used again for others.
type request struct {
	chain virtio.Chain
	// The header is a copy: the guest may change its own.
	header [headerSize]byte
	ranges [maxRanges * rangeSize]byte
	data   [][]byte // without header and status
	size   int      // of data
	status []byte   // one byte
	wrote  uint32   // how much of the chain the device has written
	began  time.Time
}

// parse takes a chain apart. What has no header or no status can't be
// answered: that is an error.
func (r *request) parse() error {
	readable, ok := virtio.Pull(r.chain.Readable, r.header[:])
	if !ok {
		return fmt.Errorf("%w: a request without header", virtio.ErrQueue)
	}
	var writable [][]byte
	if writable, r.status, ok = virtio.CutLast(r.chain.Writable); !ok {
		return fmt.Errorf("%w: a request without room for its status", virtio.ErrQueue)
	}
	r.data = readable
	switch r.kind() {
	case typeIn, typeGetID:
		r.data = writable
	}
	r.size = virtio.Length(r.data)
	r.began = time.Now()
	return nil
}

func (r *request) kind() uint32   { return binary.LittleEndian.Uint32(r.header[:]) }
func (r *request) sector() uint64 { return binary.LittleEndian.Uint64(r.header[8:]) }

// offset is where the data belong, if the disk has that.
func (r *request) offset(d *Device) (int64, error) {
	if r.size > maxRequest || r.size%SectorSize != 0 {
		return 0, errGuest
	}
	return d.within(r.sector(), uint64(r.size)/SectorSize)
}

// within checks a range of sectors.
func (d *Device) within(sector, n uint64) (int64, error) {
	if all := d.sectors.Load(); sector > all || n > all-sector {
		return 0, errGuest
	}
	return int64(sector) * SectorSize, nil
}

// try does a request if nothing needs to be waited for.
func (d *Device) try(r *request) bool {
	disk, ok := d.disk.(quick)
	switch kind := r.kind(); {
	case kind == typeGetID:
		d.finish(r, d.id(r))
		return true
	case !ok || kind != typeIn && kind != typeOut:
		return false
	case kind == typeIn:
		off, err := r.offset(d)
		if err != nil || !disk.TryReadv(r.data, off) {
			return false
		}
	default:
		off, err := r.offset(d)
		if err != nil || d.options.ReadOnly || !d.writeback.Load() {
			return false
		}
		d.change(off, int64(r.size))
		if !disk.TryWritev(r.data, off) {
			return false
		}
		d.change(off, int64(r.size))
	}
	d.finish(r, nil)
	return true
}

// do does a request.
func (d *Device) do(r *request) {
	var err error
	switch r.kind() {
	case typeIn:
		var off int64
		if off, err = r.offset(d); err == nil {
			err = d.disk.Readv(r.data, off)
		}
	case typeOut:
		err = d.write(r)
	case typeFlush:
		err = d.disk.Flush()
	case typeGetID:
		err = d.id(r)
	case typeDiscard, typeWriteZeroes:
		err = d.erase(r)
	default:
		err = errUnsupported
	}
	d.finish(r, err)
}

func (d *Device) id(r *request) error {
	var id [idSize]byte
	copy(id[:], d.options.Serial)
	if _, ok := virtio.Push(r.data, id[:]); !ok {
		return errGuest
	}
	return nil
}

func (d *Device) write(r *request) error {
	if d.options.ReadOnly {
		return errGuest
	}
	off, err := r.offset(d)
	if err != nil {
		return err
	}
	d.change(off, int64(r.size))
	err = d.disk.Writev(r.data, off)
	d.change(off, int64(r.size))
	if err == nil {
		err = d.settle()
	}
	return err
}

// settle has what was written stay, if the driver relies on that (5.2.6.2).
func (d *Device) settle() error {
	if d.writeback.Load() {
		return nil
	}
	return d.disk.Flush()
}

// erase discards ranges or fills them with zeroes. All are checked before the
// first is touched.
func (d *Device) erase(r *request) error {
	if d.options.ReadOnly {
		return errGuest
	}
	if r.size == 0 || r.size%rangeSize != 0 || r.size > len(r.ranges) {
		return errGuest
	}
	ranges, zero := r.ranges[:r.size], r.kind() == typeWriteZeroes
	virtio.Pull(r.data, ranges)
	le := binary.LittleEndian
	for b := ranges; len(b) > 0; b = b[rangeSize:] {
		n, flags := le.Uint32(b[8:]), le.Uint32(b[12:])
		if flags&^flagUnmap != 0 || flags != 0 && !zero {
			return errUnsupported
		}
		if n > maxRange {
			return errGuest
		}
		if _, err := d.within(le.Uint64(b), uint64(n)); err != nil {
			return err
		}
	}
	for b := ranges; len(b) > 0; b = b[rangeSize:] {
		off, n := int64(le.Uint64(b))*SectorSize, int64(le.Uint32(b[8:]))*SectorSize
		if n == 0 {
			continue
		}
		var err error
		d.change(off, n)
		if zero {
			err = d.disk.WriteZeroes(off, n, le.Uint32(b[12:]) == flagUnmap)
		} else {
			err = d.disk.Discard(off, n)
		}
		d.change(off, n)
		if err != nil {
			return err
		}
	}
	return d.settle()
}

func (d *Device) change(off, n int64) {
	if list := d.trackers.Load(); list != nil {
		for _, t := range *list {
			t.Change(off, n)
		}
	}
}

// finish writes a request's status, and counts it.
func (d *Device) finish(r *request, err error) {
	r.wrote = 1
	switch {
	case err == nil:
		r.status[0] = statusOK
		if k := r.kind(); k == typeIn || k == typeGetID {
			r.wrote += uint32(r.size)
		}
	case errors.Is(err, errUnsupported):
		r.status[0] = statusUnsupported
	default:
		r.status[0] = statusIOError
	}
	d.metrics.count(r, err)
}
