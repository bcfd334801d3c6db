// Package loop attaches files to loop block devices, and finds the device of
// a file that was attached before, by any process.
//
// A file is told by device and inode number, never by its name: a name may
// have been renamed, replaced, or be a different one in another mount
// namespace, and two loop devices over one file would mean two mounted file
// systems that overwrite each other.
//
// Every device is attached with autoclear: it vanishes with its last user
// (an open descriptor or a mount), so that nothing is left when a process
// dies between attaching and mounting. It needs root and Linux 5.8
// (LOOP_CONFIGURE).
package loop

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// BlockSize is the logical block size that devices are given. Direct I/O
// needs one no smaller than that of the disk below, and 4096 is the largest
// that disks have.
const BlockSize = 4096

// attachTries bounds how often a free device is asked for: between the
// answer and the use of it another process may take it.
const attachTries = 100

// Device is an open, attached loop device.
type Device struct {
	f  *os.File
	no int
}

// Attach connects file, which must be open for reading and writing, to a
// free device. Direct I/O is used where the file can: the file's pages are
// then not cached twice, which doubled the throughput of a btrfs on it.
func Attach(ctx context.Context, file *os.File) (*Device, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach %s to a loop device: %w", file.Name(), err)
	}
	defer control.Close()
	for range attachTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		no, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("attach %s: no free loop device: %w", file.Name(), err)
		}
		d, err := open(no, os.O_RDWR)
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", file.Name(), err)
		}
		err = d.configure(file)
		if err == nil {
			return d, nil
		}
		d.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s to %s: %w", file.Name(), d.Path(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: each of %d free loop devices was taken by another process first: %w", file.Name(), attachTries, unix.EBUSY)
}

func (d *Device) configure(file *os.File) error {
	c := unix.LoopConfig{Fd: uint32(file.Fd()), Size: BlockSize}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(c.Info.File_name[:len(c.Info.File_name)-1], file.Name())
	err := unix.IoctlLoopConfigure(int(d.f.Fd()), &c)
	if errors.Is(err, unix.EINVAL) { // a file system without direct I/O
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(d.f.Fd()), &c)
	}
	return err
}

// Find returns the device that file is attached to, or nil. The caller
// closes it.
func Find(file *os.File) (*Device, error) {
	var want unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &want); err != nil {
		return nil, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	for no, on := range attached() {
		if on == (Backing{want.Dev, want.Ino}) {
			return Open(nodePath(no), file)
		}
	}
	return nil, nil
}

// Backing tells a file apart from all others of the host.
type Backing struct{ Dev, Ino uint64 }

// Attached maps the files behind all loop devices of the host to the
// devices' nodes.
func Attached() map[Backing]string {
	all := make(map[Backing]string)
	for no, on := range attached() {
		all[on] = nodePath(no)
	}
	return all
}

func attached() iter.Seq2[int, Backing] {
	return func(yield func(int, Backing) bool) {
		dirs, _ := filepath.Glob("/sys/block/loop*/loop") // the pattern is fine
		for _, dir := range dirs {
			no, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(dir)), "loop"))
			if err != nil {
				continue
			}
			d, err := open(no, os.O_RDONLY)
			if err != nil {
				continue // detached meanwhile
			}
			on, err := d.backing()
			d.Close()
			if err == nil && !yield(no, on) {
				return
			}
		}
	}
}

// Open opens the device at path (like /dev/loop3) if file is what it is
// attached to, else it returns nil.
func Open(path string, file *os.File) (*Device, error) {
	no, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/loop"))
	if err != nil {
		return nil, nil
	}
	var want unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &want); err != nil {
		return nil, fmt.Errorf("stat %s: %w", file.Name(), err)
	}
	d, err := open(no, os.O_RDONLY)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if on, err := d.backing(); err != nil || on != (Backing{want.Dev, want.Ino}) {
		d.Close()
		return nil, nil
	}
	return d, nil
}

func open(no, flags int) (*Device, error) {
	f, err := os.OpenFile(nodePath(no), flags, 0)
	if err != nil {
		return nil, err
	}
	return &Device{f: f, no: no}, nil
}

func (d *Device) backing() (Backing, error) {
	st, err := unix.IoctlLoopGetStatus64(int(d.f.Fd()))
	if err != nil {
		return Backing{}, err
	}
	return Backing{st.Device, st.Inode}, nil
}

func nodePath(no int) string { return "/dev/loop" + strconv.Itoa(no) }

// Path is the device's node.
func (d *Device) Path() string { return nodePath(d.no) }

// SetCapacity makes the device as large as its file has become.
func (d *Device) SetCapacity() error {
	if err := unix.IoctlSetInt(int(d.f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("set capacity of %s: %w", d.Path(), err)
	}
	return nil
}

// RefuseDiscards keeps the device from punching holes into a file whose
// blocks were reserved: an fstrim of the whole host would have it do that.
// The kernel stops the device's queue for this, which takes 15 to 30 ms.
func (d *Device) RefuseDiscards() error {
	path := fmt.Sprintf("/sys/block/loop%d/queue/discard_max_bytes", d.no)
	return os.WriteFile(path, []byte("0"), 0)
}

// Close lets go of the device; it vanishes unless something else uses it.
func (d *Device) Close() error { return d.f.Close() }
