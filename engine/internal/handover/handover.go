// Package handover carries a message and open files from the host to a
// process that it has just started, and the answer back. The host is
// trusted, the process is ours until it executes something else; its answer is
// bounded all the same.
package handover

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

// Report is the process's answer.
type Report struct {
	Started bool       `json:"started,omitempty"`
	Error   *api.Error `json:"error,omitempty"`
}

// Bounds of a message. The kernel takes 253 descriptors at once
// (SCM_MAX_FD); batches stay well below.
const (
	maxMessage = 4 << 20
	maxFiles   = 1024
	batch      = 64
)

// header precedes a JSON text: its length and how many descriptors follow.
type header struct{ Size, Files uint32 }

// fileByte carries a batch of descriptors.
const fileByte = 'F'

// Send sends a message and files, which stay the caller's.
func Send(c *net.UnixConn, v any, files []*os.File) error {
	if err := send(c, v, len(files)); err != nil {
		return err
	}
	for len(files) > 0 {
		n := min(len(files), batch)
		fds := make([]int, n)
		for i, f := range files[:n] {
			fds[i] = int(f.Fd())
		}
		if _, _, err := c.WriteMsgUnix([]byte{fileByte}, unix.UnixRights(fds...), nil); err != nil {
			return err
		}
		files = files[n:]
	}
	return nil
}

// SendAlone sends a message without files.
func SendAlone(w io.Writer, v any) error { return send(w, v, 0) }

func send(w io.Writer, v any, files int) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > maxMessage || files > maxFiles {
		return fmt.Errorf("message of %d bytes and %d files is too large to hand over", len(text), files)
	}
	msg := binary.NativeEndian.AppendUint32(nil, uint32(len(text)))
	msg = binary.NativeEndian.AppendUint32(msg, uint32(files))
	_, err = w.Write(append(msg, text...))
	return err
}

// Wait reads the process's answer: nil when what it was to execute has been
// executed. Where that takes the process over, only the end of the connection
// tells that it was executed; if it could not be, a second report says so.
// A process that died before it could answer is io.EOF.
func Wait(c io.Reader, takeover bool) error {
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
		case !takeover:
			return nil
		}
	}
}

// Answer tells the host how it went, and ends the connection.
func Answer(conn *net.UnixConn, err error) {
	r := Report{Started: err == nil, Error: api.AsError(err)}
	_ = r.Send(conn) // a host that is gone needs no answer
	conn.Close()
}

// Send sends a report.
func (r Report) Send(w io.Writer) error {
	b, err := json.Marshal(r)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// Decode reads a message from r into v, and how many files follow. It reads
// no byte more.
func Decode(r io.Reader, v any) (files int, err error) {
	var h header
	if err := binary.Read(r, binary.NativeEndian, &h); err != nil {
		return 0, fmt.Errorf("read from the host: %w", err)
	}
	if h.Size > maxMessage || h.Files > maxFiles {
		return 0, fmt.Errorf("message of %d bytes and %d files is too large to be handed over", h.Size, h.Files)
	}
	text := make([]byte, h.Size)
	if _, err := io.ReadFull(r, text); err != nil {
		return 0, fmt.Errorf("read from the host: %w", err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return 0, fmt.Errorf("read from the host: %w", err)
	}
	return int(h.Files), nil
}

// Receive reads a message into v and the files that come with it; check looks
// at both, and at the number of files, before they are read.
func Receive(c *net.UnixConn, v any, check func(files int) error) (files []*os.File, err error) {
	n, err := Decode(c, v)
	if err == nil {
		err = check(n)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			CloseAll(files)
			files = nil
		}
	}()
	oob := make([]byte, unix.CmsgSpace(4*batch))
	for len(files) < n {
		var one [1]byte
		k, m, flags, _, err := c.ReadMsgUnix(one[:], oob)
		if err != nil {
			return files, fmt.Errorf("read files from the host: %w", err)
		}
		fds, err := rights(oob[:m])
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed-over"))
		}
		if err != nil || k != 1 || one[0] != fileByte || flags&unix.MSG_CTRUNC != 0 || len(fds) == 0 || len(files) > n {
			return files, fmt.Errorf("read files from the host: got %d of %d: %w", len(files), n, errors.Join(err, io.ErrUnexpectedEOF))
		}
	}
	return files, nil
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

// Connection takes a connected socket's descriptor over.
func Connection(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "host")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	return u, nil
}

// CloseAll closes files.
func CloseAll(fs []*os.File) {
	for _, f := range fs {
		f.Close()
	}
}
