package setup

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Report is the guest's answer.
type Report struct {
	Started bool       `json:"started,omitempty"`
	Error   *api.Error `json:"error,omitempty"`
}

// Bounds of a message. The kernel takes 253 descriptors at once
// (SCM_MAX_FD); batches stay well below.
const (
	maxMessage = 4 << 20
	maxFDs     = 1024
	batch      = 64
)

// header precedes a JSON text: its length and how many descriptors follow.
type header struct{ Size, FDs uint32 }

// fdByte carries a batch of descriptors.
const fdByte = 'F'

// Send sends the specification and the descriptors, which stay the caller's.
func Send(c *net.UnixConn, s *Spec, mounts []*os.File) error {
	if err := send(c, s, len(mounts)); err != nil {
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

// Go tells that the network is there, and what to execute.
func Go(c io.Writer, e *Entry) error { return send(c, e, 0) }

func send(w io.Writer, v any, fds int) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > maxMessage || fds > maxFDs {
		return fmt.Errorf("message of %d bytes and %d mounts for the guest is too large", len(text), fds)
	}
	msg := binary.NativeEndian.AppendUint32(nil, uint32(len(text)))
	msg = binary.NativeEndian.AppendUint32(msg, uint32(fds))
	_, err = w.Write(append(msg, text...))
	return err
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

// report tells the host how it went, and ends the connection.
func report(conn *net.UnixConn, err error) {
	r := Report{Started: err == nil, Error: api.AsError(err)}
	_ = r.send(conn) // a host that is gone needs no answer
	conn.Close()
}

func (r Report) send(w io.Writer) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// decode reads a message from r into v, and how many descriptors follow. It
// reads no byte more.
func decode(r io.Reader, v any) (fds int, err error) {
	var h header
	if err := binary.Read(r, binary.NativeEndian, &h); err != nil {
		return 0, fmt.Errorf("read from the host: %w", err)
	}
	if h.Size > maxMessage || h.FDs > maxFDs {
		return 0, fmt.Errorf("message of %d bytes and %d mounts for the guest is too large", h.Size, h.FDs)
	}
	text := make([]byte, h.Size)
	if _, err := io.ReadFull(r, text); err != nil {
		return 0, fmt.Errorf("read from the host: %w", err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return 0, fmt.Errorf("read from the host: %w", err)
	}
	return int(h.FDs), nil
}

// check refuses a specification that doesn't fit the descriptors.
func (s *Spec) check(fds int) error {
	want := 2 + len(s.Mounts)
	if s.Terminal {
		want++
	}
	switch {
	case fds != want:
		return fmt.Errorf("guest specification wants %d mounts, got %d", want, fds)
	case len(s.Seccomp) == 0 || len(s.Seccomp)%8 != 0 || len(s.Seccomp)/8 > unix.BPF_MAXINSNS:
		return fmt.Errorf("guest specification has a system call filter of %d bytes", len(s.Seccomp))
	}
	return nil
}

// receive reads the specification and its descriptors.
func receive(c *net.UnixConn) (s *Spec, mounts []*os.File, err error) {
	s = &Spec{}
	n, err := decode(c, s)
	if err == nil {
		err = s.check(n)
	}
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
