package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of userfaultfd(2) (linux/userfaultfd.h).
const (
	faultNew        = 0xaa00     // USERFAULTFD_IOC_NEW, of /dev/userfaultfd
	faultAPI        = 0xc018aa3f // UFFDIO_API
	faultRegister   = 0xc020aa00 // UFFDIO_REGISTER
	faultUnregister = 0x8010aa01 // UFFDIO_UNREGISTER
	faultWake       = 0x8010aa02 // UFFDIO_WAKE
	faultCopy       = 0xc028aa03 // UFFDIO_COPY
	faultZero       = 0xc020aa04 // UFFDIO_ZEROPAGE

	faultVersion   = 0xaa // UFFD_API
	faultOfShmem   = 1 << 5
	faultOfMissing = 1    // UFFDIO_REGISTER_MODE_MISSING
	faultEvent     = 0x12 // UFFD_EVENT_PAGEFAULT
	faultMessage   = 32   // bytes
)

// FaultRequests are the requests of ioctl that a process needs whose memory
// comes while it is used, and NeedRequests those of them that a thread needs
// which uses it.
var (
	FaultRequests = []uint32{faultNew, faultAPI, faultRegister, faultUnregister, faultWake, faultCopy, faultZero}
	NeedRequests  = []uint32{faultWake, faultZero}
)

// FaultDevice is the file that NewFaults needs, since Linux 6.1.
const FaultDevice = "/dev/userfaultfd"

// Faults tells of accesses to pages that aren't there, by the kernel too, and
// has them wait (userfaultfd(2)).
type Faults struct{ file *os.File }

// NewFaults opens it for this process, by the open FaultDevice.
func NewFaults(device *os.File) (*Faults, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), faultNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		return nil, fmt.Errorf("wait for pages of memory: %w", errno)
	}
	// Until its version is agreed upon, who polls it gets nothing but an error,
	// and NewFile has Go's runtime do that.
	api := [3]uint64{faultVersion, faultOfShmem}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, faultAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		unix.Close(int(fd))
		return nil, fmt.Errorf("wait for pages of shared memory: %w", errno)
	}
	return &Faults{os.NewFile(fd, "userfaultfd")}, nil
}

// Close ends it. Who waits for a page goes on, as if it had never been there.
func (f *Faults) Close() error { return f.file.Close() }

func (f *Faults) do(request uintptr, arg unsafe.Pointer) (err error) {
	raw, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	e := raw.Control(func(fd uintptr) {
		for {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
			switch errno {
			case 0:
				return
			case unix.EINTR:
			default:
				err = errno
				return
			}
		}
	})
	return errors.Join(e, err)
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// register has accesses to pages of b wait that aren't there.
func (f *Faults) register(b []byte) error {
	arg := [4]uint64{address(b), uint64(len(b)), faultOfMissing}
	return f.do(faultRegister, unsafe.Pointer(&arg))
}

func (f *Faults) unregister(b []byte) error {
	arg := [2]uint64{address(b), uint64(len(b))}
	return f.do(faultUnregister, unsafe.Pointer(&arg))
}

// copy puts pages where there are none.
func (f *Faults) copy(to, from []byte) error {
	arg := [5]uint64{address(to), address(from), uint64(len(to))}
	defer runtime.KeepAlive(from)
	return f.place(len(to), func() (int64, error) {
		err := f.do(faultCopy, unsafe.Pointer(&arg))
		done := int64(arg[4])
		if done > 0 {
			arg[0], arg[1], arg[2] = arg[0]+uint64(done), arg[1]+uint64(done), arg[2]-uint64(done)
		}
		return done, err
	})
}

// zero puts pages of zeroes where there are none.
func (f *Faults) zero(to []byte) error {
	arg := [4]uint64{address(to), uint64(len(to))}
	return f.place(len(to), func() (int64, error) {
		err := f.do(faultZero, unsafe.Pointer(&arg))
		done := int64(arg[3])
		if done > 0 {
			arg[0], arg[1] = arg[0]+uint64(done), arg[1]-uint64(done)
		}
		return done, err
	})
}

// place repeats what places some bytes at a time.
func (f *Faults) place(n int, some func() (int64, error)) error {
	for left := int64(n); left > 0; {
		done, err := some()
		if done > 0 { // else it is an errno
			left -= done
			continue
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return nil
}

// wake has who waits for pages look again whether they are there.
func (f *Faults) wake(b []byte) error {
	arg := [2]uint64{address(b), uint64(len(b))}
	return f.do(faultWake, unsafe.Pointer(&arg))
}

// next waits for an access to a page that isn't there, and is its address.
func (f *Faults) next() (uint64, error) {
	var b [faultMessage]byte
	for {
		n, err := f.file.Read(b[:])
		if err != nil {
			return 0, err
		}
		if n == len(b) && b[0] == faultEvent {
			return binary.LittleEndian.Uint64(b[16:]), nil
		}
	}
}
