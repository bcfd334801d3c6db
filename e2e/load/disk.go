package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	workers    = 4
	regionSize = 1 << 20 // of the disk, for each worker
	block      = 4096
	operations = 100 // of each worker
)

// verifiedDisk has workers write, erase, flush and read a disk at the same
// time, each a region of its own, past the page cache. It answers with the
// regions' sums.
func verifiedDisk(name string) (string, error) {
	var wait sync.WaitGroup
	sums, errs := make([]string, workers), make([]error, workers)
	for i := range workers {
		wait.Go(func() { sums[i], errs[i] = verifiedRegion(name, i) })
	}
	wait.Wait()
	return strings.Join(sums, " "), errors.Join(errs...)
}

// aligned is room that direct I/O takes.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

type region struct {
	*os.File
	start int64
	want  []byte // what it has to be
	known []bool // by block: nobody knows what an erased one is
	room  []byte
}

func verifiedRegion(name string, i int) (string, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	r := &region{File: f, start: int64(i) * regionSize, want: make([]byte, regionSize), known: make([]bool, regionSize/block)}
	if r.room, err = aligned(regionSize); err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(r.room) }()
	random := rand.New(rand.NewPCG(uint64(i), 7))
	if err := r.operate(random, 7, 0, len(r.known)); err != nil {
		return "", err
	}
	for n := range operations {
		first := random.IntN(len(r.known))
		blocks := 1 + random.IntN(min(16, len(r.known)-first))
		if err := r.operate(random, random.IntN(10), first, blocks); err != nil {
			return "", fmt.Errorf("worker %d, operation %d: %w", i, n, err)
		}
	}
	for first, known := range r.known {
		if !known {
			if err := r.operate(random, 0, first, 1); err != nil {
				return "", err
			}
		}
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(r.want)), r.verify(0, len(r.known))
}

func (r *region) operate(random *rand.Rand, kind, first, blocks int) error {
	from, to := first*block, (first+blocks)*block
	switch kind {
	default: // 0 to 3
		for i := from; i < to; i++ {
			r.want[i] = byte(random.Uint32())
		}
		copy(r.room, r.want[from:to])
		if _, err := r.WriteAt(r.room[:to-from], r.start+int64(from)); err != nil {
			return err
		}
		r.know(first, blocks, true)
	case 4, 5, 6:
		return r.verify(first, blocks)
	case 7:
		if err := r.erase(unix.BLKZEROOUT, from, to); err != nil {
			return fmt.Errorf("write zeroes: %w", err)
		}
		clear(r.want[from:to])
		r.know(first, blocks, true)
	case 8:
		if err := r.erase(unix.BLKDISCARD, from, to); err != nil {
			return fmt.Errorf("discard: %w", err)
		}
		r.know(first, blocks, false)
	case 9:
		return r.Sync()
	}
	return nil
}

func (r *region) know(first, blocks int, known bool) {
	for i := range blocks {
		r.known[first+i] = known
	}
}

func (r *region) erase(how uintptr, from, to int) error {
	area := [2]uint64{uint64(r.start) + uint64(from), uint64(to - from)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, r.Fd(), how, uintptr(unsafe.Pointer(&area))); e != 0 {
		return e
	}
	return nil
}

func (r *region) verify(first, blocks int) error {
	got := r.room[:blocks*block]
	if _, err := r.ReadAt(got, r.start+int64(first*block)); err != nil {
		return err
	}
	for i := range blocks {
		at := (first + i) * block
		if r.known[first+i] && !bytes.Equal(got[i*block:][:block], r.want[at:][:block]) {
			return fmt.Errorf("block %d is not what was written", first+i)
		}
	}
	return nil
}
