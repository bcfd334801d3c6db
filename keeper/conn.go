package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Limits of one message. A request holds a whole environment and argument
// list; anything larger than this could not be executed anyway
// (Linux: MAX_ARG_STRLEN and a quarter of the stack limit, 2 MiB by default).
const (
	maxMessage = 4 << 20
	maxFiles   = 64
)

// conn carries messages: a length of four bytes, big-endian, and that much
// JSON. Open files travel as SCM_RIGHTS with the first byte of the length.
type conn struct {
	*net.UnixConn
}

// send writes one message.
func (c *conn) send(v any, files ...*os.File) error {
	fds, err := descriptors(files)
	if err != nil {
		return err
	}
	err = c.sendFDs(v, fds)
	runtime.KeepAlive(files)
	return err
}

func (c *conn) sendFDs(v any, fds []int) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", len(body), maxMessage)
	}
	if len(fds) > maxFiles {
		return fmt.Errorf("%d files in one message are over the limit of %d", len(fds), maxFiles)
	}
	frame := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(frame, rights, nil)
	if err == nil && n < len(frame) {
		_, err = c.Write(frame[n:])
	}
	return err
}

// descriptors asks by way of SyscallConn, because File.Fd would make the
// caller's files blocking.
func descriptors(files []*os.File) ([]int, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return nil, err
		}
	}
	return fds, nil
}

// receive reads one message into v. The files that came with it are the
// caller's, also when it was no valid message.
func (c *conn) receive(v any) ([]*os.File, error) {
	var header [4]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(header[:], oob)
	files, ferr := parseRights(oob[:oobn])
	switch {
	case err != nil:
		return files, err
	case n == 0:
		return files, io.EOF
	case ferr != nil:
		return files, ferr
	case flags&unix.MSG_CTRUNC != 0:
		return files, fmt.Errorf("more than %d files in one message, or none left to open", maxFiles)
	}
	if _, err := io.ReadFull(c, header[n:]); err != nil {
		return files, err
	}
	return files, readBody(c, header, v)
}

// readBody reads and decodes what follows a header. It takes memory as the
// bytes come, not as the header promises.
func readBody(r io.Reader, header [4]byte, v any) error {
	size := binary.BigEndian.Uint32(header[:])
	if size > maxMessage {
		return fmt.Errorf("a message of %d bytes is over the limit of %d", size, maxMessage)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return err
	}
	if len(body) < int(size) {
		return io.ErrUnexpectedEOF
	}
	return json.Unmarshal(body, v)
}

func parseRights(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // credentials, for one, which nobody asked for
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// checkPeer refuses a peer that runs as another user: the socket's mode says
// the same, and a mistaken chmod must not hand out the host.
func (c *conn) checkPeer() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("the peer (pid %d) runs as uid %d, not %d", cred.Pid, cred.Uid, os.Geteuid())
	}
	return nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// gone tells whether err only says that the other side has left.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) ||
		errors.Is(err, unix.EPIPE) || errors.Is(err, net.ErrClosed)
}
