package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Sizes.
const (
	sector = 512
	block  = 4096 // what the cache is kept in
)

// CacheSize is how much the volatile cache holds.
const CacheSize = 128 << 20

// Disk is one disk.
type Disk struct {
	size int64

	mu     sync.Mutex
	medium *os.File
	cache  map[int64]*cached // by the number of their block
	limit  int               // of blocks in the cache
}

// cached is a block of which some sectors are not on the medium yet.
type cached struct {
	have uint8 // a bit a sector
	data [block]byte
}

// Open makes a disk of a file: of its size, or, if that is smaller, of size.
// The file is all that the disk keeps without power.
func Open(path string, size int64) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && st.Size() < size {
		err = f.Truncate(size)
	} else if err == nil {
		size = st.Size()
	}
	if err == nil && (size <= 0 || size%block != 0) {
		err = fmt.Errorf("a disk of %d bytes is not made of blocks of %d", size, block)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open disk %s: %w", path, err)
	}
	return &Disk{size: size, medium: f, cache: map[int64]*cached{}, limit: CacheSize / block}, nil
}

// Size is the disk's, in bytes.
func (d *Disk) Size() int64 { return d.size }

// Close flushes the disk, and ends it.
func (d *Disk) Close() error {
	return errors.Join(d.Flush(), d.medium.Close())
}

// LosePower forgets what was not flushed, and says how many bytes that was.
func (d *Disk) LosePower() (lost int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.cache {
		for bit := range block / sector {
			if c.have>>bit&1 == 1 {
				lost += sector
			}
		}
	}
	clear(d.cache)
	return lost
}

// errRange is a request beyond the disk's end, or within a sector.
var errRange = errors.New("not within the disk, or not whole sectors")

func (d *Disk) check(off, n int64) error {
	if off < 0 || n < 0 || off > d.size || n > d.size-off || off%sector != 0 || n%sector != 0 {
		return errRange
	}
	return nil
}

// ReadAt reads what was written last, flushed or not.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n, err := d.medium.ReadAt(p, off); err != nil && (err != io.EOF || n < len(p)) {
		return n, err
	}
	d.each(p, off, func(c *cached, bit int, part []byte) {
		if c != nil && c.have>>bit&1 == 1 {
			copy(part, c.data[bit*sector:])
		}
	})
	return len(p), nil
}

// each goes over the sectors of a range, with the cached block that may hold
// them.
func (d *Disk) each(p []byte, off int64, do func(c *cached, bit int, part []byte)) {
	if len(d.cache) == 0 {
		return
	}
	for done := 0; done < len(p); done += sector {
		at := off + int64(done)
		do(d.cache[at/block], int(at%block/sector), p[done:done+sector])
	}
}

// WriteAt writes to the cache.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for done := 0; done < len(p); {
		at := off + int64(done)
		c := d.cache[at/block]
		if c == nil {
			c = &cached{}
			d.cache[at/block] = c
		}
		from := int(at % block)
		n := copy(c.data[from:], p[done:])
		for bit := from / sector; bit < (from+n)/sector; bit++ {
			c.have |= 1 << bit
		}
		done += n
	}
	if len(d.cache) > d.limit {
		return len(p), d.destage()
	}
	return len(p), nil
}

// WriteThrough writes to the medium.
func (d *Disk) WriteThrough(p []byte, off int64) error {
	if err := d.check(off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.medium.WriteAt(p, off); err != nil {
		return err
	}
	d.forget(off, int64(len(p)))
	return nil
}

// Zero makes a range read as zeros. It is on the medium at once.
func (d *Disk) Zero(off, n int64) error {
	if err := d.check(off, n); err != nil || n == 0 {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err := unix.Fallocate(int(d.medium.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == unix.EOPNOTSUPP {
		err = d.writeZeros(off, n)
	}
	if err != nil {
		return err
	}
	d.forget(off, n)
	return nil
}

// writeZeros is for file systems without holes.
func (d *Disk) writeZeros(off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for ; n > 0; n -= int64(len(zeros)) {
		zeros = zeros[:min(n, int64(len(zeros)))]
		if _, err := d.medium.WriteAt(zeros, off); err != nil {
			return err
		}
		off += int64(len(zeros))
	}
	return nil
}

// forget drops a range from the cache, which the medium has; with mu held.
func (d *Disk) forget(off, n int64) {
	if int64(len(d.cache)) < n/block {
		for number, c := range d.cache {
			d.forgetIn(number, c, off, n)
		}
		return
	}
	for number := off / block; number <= (off+n-1)/block; number++ {
		if c := d.cache[number]; c != nil {
			d.forgetIn(number, c, off, n)
		}
	}
}

func (d *Disk) forgetIn(number int64, c *cached, off, n int64) {
	for bit := range block / sector {
		if at := number*block + int64(bit)*sector; at >= off && at < off+n {
			c.have &^= 1 << bit
		}
	}
	if c.have == 0 {
		delete(d.cache, number)
	}
}

// Flush writes the cache to the medium.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.destage()
}

// destage writes the cache to the medium; with mu held. The file isn't
// synced: the power that can be lost is the lab's, not its host's.
func (d *Disk) destage() error {
	for number, c := range d.cache {
		for bit := 0; bit < block/sector; {
			if c.have>>bit&1 == 0 {
				bit++
				continue
			}
			end := bit
			for end < block/sector && c.have>>end&1 == 1 {
				end++
			}
			if _, err := d.medium.WriteAt(c.data[bit*sector:end*sector], number*block+int64(bit)*sector); err != nil {
				return err
			}
			bit = end
		}
		delete(d.cache, number)
	}
	return nil
}
