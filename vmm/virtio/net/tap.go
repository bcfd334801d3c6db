package net

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// headerSize is that of struct virtio_net_hdr with num_buffers (5.1.6).
const headerSize = 12

// Tap is a queue of a tap of the host.
type Tap struct {
	file     *os.File
	conn     syscall.RawConn
	multi    bool // it is one of several
	attached bool
	uso      bool
}

// NewTap returns a queue for an open descriptor of a tap, that must have been
// made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR. It takes the descriptor over
// and has it not block.
func NewTap(fd int) (*Tap, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	t := &Tap{file: os.NewFile(uintptr(fd), "tap"), attached: true}
	if err := t.prepare(); err != nil {
		t.file.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tap) prepare() (err error) {
	if t.conn, err = t.file.SyscallConn(); err != nil {
		return fmt.Errorf("tap: %w", err)
	}
	var ifr [40]byte // struct ifreq: the name, then flags
	if err := t.ioctl(unix.TUNGETIFF, unsafe.Pointer(&ifr)); err != nil {
		return fmt.Errorf("ask what a tap is: %w", err)
	}
	flags := *(*uint16)(unsafe.Pointer(&ifr[unix.IFNAMSIZ]))
	if want := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR); flags&want != want {
		return fmt.Errorf("tap %s has flags %#x, without all of %#x (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)", unix.ByteSliceToString(ifr[:unix.IFNAMSIZ]), flags, want)
	}
	t.multi = flags&unix.IFF_MULTI_QUEUE != 0
	size := int32(headerSize)
	if err := t.ioctl(unix.TUNSETVNETHDRSZ, unsafe.Pointer(&size)); err != nil {
		return fmt.Errorf("set a tap's header size: %w", err)
	}
	little := int32(1)
	if err := t.ioctl(unix.TUNSETVNETLE, unsafe.Pointer(&little)); err != nil {
		return fmt.Errorf("set a tap's byte order: %w", err)
	}
	// Segmentation of UDP is since Linux 6.2.
	t.uso = t.setOffloads(FeatureGuestCSUM|FeatureGuestUSO4|FeatureGuestUSO6) == nil
	return t.setOffloads(0)
}

// Close closes the descriptor.
func (t *Tap) Close() error { return t.file.Close() }

// control calls f with the descriptor, which must not be made blocking as
// Fd() of a file does.
func (t *Tap) control(f func(fd uintptr) error) error {
	var err error
	if e := t.conn.Control(func(fd uintptr) { err = f(fd) }); e != nil {
		return e
	}
	return err
}

func (t *Tap) ioctl(request uintptr, arg unsafe.Pointer) error {
	return t.control(func(fd uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != 0 {
			return errno
		}
		return nil
	})
}

// setOffloads says what the reader of the tap can take (all of its queues).
func (t *Tap) setOffloads(features uint64) error {
	var flags uintptr
	for _, o := range []struct {
		feature uint64
		flag    uintptr
	}{
		{FeatureGuestCSUM, unix.TUN_F_CSUM},
		{FeatureGuestTSO4, unix.TUN_F_TSO4},
		{FeatureGuestTSO6, unix.TUN_F_TSO6},
		{FeatureGuestECN, unix.TUN_F_TSO_ECN},
		{FeatureGuestUFO, unix.TUN_F_UFO},
		{FeatureGuestUSO4, unix.TUN_F_USO4},
		{FeatureGuestUSO6, unix.TUN_F_USO6},
	} {
		// All of them need the first (5.1.3.1); the kernel takes USO for both
		// or for none.
		if features&o.feature != 0 && features&FeatureGuestCSUM != 0 {
			flags |= o.flag
		}
	}
	if both := uintptr(unix.TUN_F_USO4 | unix.TUN_F_USO6); flags&both != both {
		flags &^= both
	}
	err := t.control(func(fd uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.TUNSETOFFLOAD, flags); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set offloads %#x of a tap: %w", flags, err)
	}
	return nil
}

// attach has packets come to the queue, or to the others.
func (t *Tap) attach(on bool) error {
	if !t.multi || t.attached == on {
		return nil
	}
	var ifr [40]byte
	flags := uint16(unix.IFF_DETACH_QUEUE)
	if on {
		flags = unix.IFF_ATTACH_QUEUE
	}
	*(*uint16)(unsafe.Pointer(&ifr[unix.IFNAMSIZ])) = flags
	if err := t.ioctl(unix.TUNSETQUEUE, unsafe.Pointer(&ifr)); err != nil {
		return fmt.Errorf("attach or detach a queue of a tap: %w", err)
	}
	t.attached = on
	return nil
}
