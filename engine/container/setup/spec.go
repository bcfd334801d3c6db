// Package setup is the first thing that runs in a new guest: it builds the
// wall from inside, out of what the host sends, before anything of the image
// is executed or trusted.
//
// The host connects to the guest's listening socket once before anybody
// else. It sends a Spec with descriptors of detached mounts, and "go" when
// the network is there. The answer is a Report: the wall stands and the entry
// point has been executed, or the reason why not. Everything the host sends
// is trusted; everything in the image is hostile.
//
// What setup needs from /proc it takes from a procfs of its own, by
// descriptor, never by a path through the image.
package setup

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Spec is what to build. Mount descriptors travel beside it: the root, the
// kit, then one for each of Mounts, then the console's if Console is set.
//
// The kit is a small file system that the host filled: dev, with the device
// nodes; cgroup, with a directory for each hierarchy; empty, to cover
// directories with; and files, which Files name.
type Spec struct {
	Hostname string
	System   bool
	Process  Process

	ReadOnlyRoot bool
	Files        []File
	Mounts       []Mount // outer ones first
	Console      bool    // the terminal is bound to /dev/console
	ShmSize      int64
	Cgroups      []Cgroup

	NICs    []NIC
	Sysctls [][2]string // name with slashes, value
	Limits  []Rlimit

	Capabilities uint64 // bounding set of the guest
	Agent        uint64 // what our own process keeps, if not a system guest
	NoNewPrivs   bool
	Seccomp      []byte // struct sock_filter array
}

// File is a file of the kit that is mounted at an absolute path.
type File struct{ Name, Target string }

// Mount is the place of a volume.
type Mount struct {
	Target string
	Dir    bool // a directory, not a file
	// Clone is set for a volume that is in the guest's mount namespace
	// already, in the host's tree, and is to be cloned with its locked flags.
	Clone bool
}

// Process is the entry point.
type Process struct {
	Args    []string
	Env     []string
	User    string
	WorkDir string
	TTY     bool
}

// Cgroup is a hierarchy to mount below /sys/fs/cgroup.
type Cgroup struct {
	Name    string // directory; empty for the place itself
	V2      bool
	Options []string
	Write   bool
}

// NIC is a network interface that the host has put in the namespace.
type NIC struct {
	Name     string
	MTU      int
	Prefixes []netip.Prefix
	Gateways []netip.Addr
}

// Rlimit is a resource limit; all bits set is unlimited.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Report is the answer.
type Report struct {
	Started bool       `json:"started,omitempty"`
	Error   *api.Error `json:"error,omitempty"`
}

// Bounds of a message. The kernel takes 253 descriptors at once
// (SCM_MAX_FD); batches stay well below.
const (
	maxSpec = 4 << 20
	maxFDs  = 1024
	batch   = 64
)

// header precedes the JSON text: its length and how many descriptors follow.
type header struct{ Size, FDs uint32 }

const (
	headerSize = 8
	goByte     = 'G' // the network is there
	fdByte     = 'F' // carries a batch of descriptors
)

// Send sends the specification and the descriptors, which stay the caller's.
func Send(c *net.UnixConn, s *Spec, mounts []*os.File) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(text) > maxSpec || len(mounts) > maxFDs {
		return fmt.Errorf("guest specification of %d bytes and %d mounts is too large", len(text), len(mounts))
	}
	msg := binary.NativeEndian.AppendUint32(nil, uint32(len(text)))
	msg = binary.NativeEndian.AppendUint32(msg, uint32(len(mounts)))
	if _, err := c.Write(append(msg, text...)); err != nil {
		return err
	}
	for len(mounts) > 0 {
		n := min(len(mounts), batch)
		fds := make([]int, n)
		for i, f := range mounts[:n] {
			fds[i] = int(f.Fd())
		}
		if _, _, err := c.WriteMsgUnix([]byte{fdByte}, unix.UnixRights(fds...), nil); err != nil {
			return err
		}
		mounts = mounts[n:]
	}
	return nil
}

// Go tells that the network is there.
func Go(c net.Conn) error {
	_, err := c.Write([]byte{goByte})
	return err
}

func (r Report) send(w io.Writer) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// decode reads a header and the specification from r.
func decode(r io.Reader) (*Spec, int, error) {
	var h header
	if err := binary.Read(r, binary.NativeEndian, &h); err != nil {
		return nil, 0, fmt.Errorf("read guest specification: %w", err)
	}
	if h.Size > maxSpec || h.FDs > maxFDs {
		return nil, 0, fmt.Errorf("guest specification of %d bytes and %d mounts is too large", h.Size, h.FDs)
	}
	text := make([]byte, h.Size)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, 0, fmt.Errorf("read guest specification: %w", err)
	}
	var s Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, 0, fmt.Errorf("read guest specification: %w", err)
	}
	return &s, int(h.FDs), s.check(int(h.FDs))
}

// check refuses a specification that doesn't fit the descriptors.
func (s *Spec) check(fds int) error {
	want := 2 + len(s.Mounts)
	if s.Console {
		want++
	}
	switch {
	case fds != want:
		return fmt.Errorf("guest specification wants %d mounts, got %d", want, fds)
	case len(s.Process.Args) == 0:
		return errors.New("guest specification has no entry point")
	case len(s.Seccomp) == 0 || len(s.Seccomp)%8 != 0 || len(s.Seccomp)/8 > unix.BPF_MAXINSNS:
		return fmt.Errorf("guest specification has a system call filter of %d bytes", len(s.Seccomp))
	}
	return nil
}

// receive reads the specification and its descriptors.
func receive(c *net.UnixConn) (s *Spec, mounts []*os.File, err error) {
	s, n, err := decode(c)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			closeAll(mounts)
		}
	}()
	oob := make([]byte, unix.CmsgSpace(4*batch))
	for len(mounts) < n {
		var one [1]byte
		k, m, flags, _, err := c.ReadMsgUnix(one[:], oob)
		if err != nil {
			return nil, mounts, fmt.Errorf("read mounts: %w", err)
		}
		fds, err := rights(oob[:m])
		for _, fd := range fds {
			mounts = append(mounts, os.NewFile(uintptr(fd), "mount"))
		}
		if err != nil || k != 1 || one[0] != fdByte || flags&unix.MSG_CTRUNC != 0 || len(fds) == 0 || len(mounts) > n {
			return nil, mounts, fmt.Errorf("read mounts: got %d of %d: %w", len(mounts), n, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	return s, mounts, nil
}

func rights(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range msgs {
		f, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		fds = append(fds, f...)
	}
	return fds, nil
}

func closeAll(fs []*os.File) {
	for _, f := range fs {
		f.Close()
	}
}

// Wait reads the guest's answer: nil when the entry point was executed. An
// init takes this process over, and then only the end of the connection
// tells that it was executed; if it could not be, a second report says so.
// A guest that died before it could answer is io.EOF.
func Wait(c io.Reader, system bool) error {
	d := json.NewDecoder(io.LimitReader(c, 64<<10))
	for started := false; ; started = true {
		var r Report
		switch err := d.Decode(&r); {
		case started && errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the guest's answer: %w", err)
		case r.Error != nil:
			return r.Error
		case !system:
			return nil
		}
	}
}
