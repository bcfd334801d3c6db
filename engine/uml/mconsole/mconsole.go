// Package mconsole is a client of the management console of User Mode Linux
// (arch/um/drivers/mconsole.h, version 2): commands and answers as datagrams
// of a unix socket, which the guest's kernel makes.
//
// Who has taken the guest's kernel over writes the answers, and owns the
// directory of the socket: answers are bounded in size, number and time,
// mean nothing but what is logged or compared, and what is found in the
// directory isn't followed anywhere else.
package mconsole

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Of arch/um/drivers/mconsole.h. Numbers are in the host's byte order.
const (
	magic       = 0xcafebabe
	version     = 2
	maxData     = 512
	requestSize = 12 + maxData
	replySize   = 12 + maxData
)

// mostReplies bound the answer to one command, which otherwise says itself
// how many there are.
const mostReplies = 64

// Console is the place of a guest's management console.
type Console struct {
	// Dir is the guest's directory, and Name the socket's path in it. The
	// guest's side may have written everything there.
	Dir, Name string
	// Replies is a directory of ours that the guest's side sees under the same
	// path and can't write.
	Replies string
}

// Command asks for one command (Documentation/virt/uml/user_mode_linux_howto_v2.rst)
// and returns its answer, which is an *Error if the guest's kernel refused.
func (c *Console) Command(ctx context.Context, command string) (string, error) {
	answer, err := c.ask(ctx, command)
	if err != nil {
		return "", fmt.Errorf("management console: %s: %w", command, err)
	}
	return answer, nil
}

// Error is what the guest's kernel says when it can't.
type Error struct{ Message string }

func (e *Error) Error() string { return fmt.Sprintf("the guest's kernel says %q", e.Message) }

// number tells the reply sockets of this process apart.
var number atomic.Uint64

func (c *Console) ask(ctx context.Context, command string) (string, error) {
	request, err := request(command)
	if err != nil {
		return "", err
	}
	socket, err := c.find()
	if err != nil {
		return "", err
	}
	defer func() { _ = socket.Close() }()
	name := filepath.Join(c.Replies, fmt.Sprintf("%d-%d", os.Getpid(), number.Add(1)))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(name) }() // a socket for datagrams doesn't do it itself
	defer func() { _ = conn.Close() }()
	if err := os.Chmod(name, 0o666); err != nil { // the answer comes from another user
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	to := &net.UnixAddr{Name: "/proc/self/fd/" + strconv.Itoa(int(socket.Fd())), Net: "unixgram"}
	if _, err := conn.WriteToUnix(request, to); err != nil {
		return "", cmpContext(ctx, err)
	}
	var answer strings.Builder
	for range mostReplies {
		packet := make([]byte, replySize+1)
		n, err := conn.Read(packet)
		if err != nil {
			return "", cmpContext(ctx, err)
		}
		text, more, err := parseReply(packet[:n])
		if err != nil {
			return "", err
		}
		answer.WriteString(text)
		if !more {
			return answer.String(), nil
		}
	}
	return "", errors.New("the answer has no end")
}

// cmpContext is the reason why a wait was given up, if that is so.
func cmpContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
	return err
}

// find opens the socket where it is, and nothing that is only named like it:
// a link to the socket of somebody else would have us speak to that.
func (c *Console) find() (*os.File, error) {
	dir, err := unix.Open(c.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: c.Dir, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	fd, err := unix.Openat2(dir, c.Name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(c.Dir, c.Name), Err: err}
	}
	f := os.NewFile(uintptr(fd), c.Name)
	st, err := f.Stat()
	if err == nil && st.Mode()&os.ModeSocket == 0 {
		err = fmt.Errorf("%s is no socket", c.Name)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// request is struct mconsole_request, which is sent whole.
func request(command string) ([]byte, error) {
	if len(command) >= maxData || strings.ContainsRune(command, 0) {
		return nil, fmt.Errorf("a command has less than %d bytes, none of them zero", maxData)
	}
	b := make([]byte, 0, requestSize)
	for _, n := range []uint32{magic, version, uint32(len(command))} {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return append(b, command...)[:requestSize], nil
}

// parseReply reads struct mconsole_reply, which comes as long as it is. What
// is wrong on the guest's side comes with the first packet only.
func parseReply(b []byte) (text string, more bool, err error) {
	if len(b) < 12 || len(b) > replySize {
		return "", false, fmt.Errorf("an answer of %d bytes", len(b))
	}
	failed, again, n := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:]), binary.NativeEndian.Uint32(b[8:])
	if int64(n) > int64(len(b)-12) {
		return "", false, fmt.Errorf("an answer of %d bytes that says it has %d", len(b)-12, n)
	}
	// The text's length counts the zero byte that ends it.
	text = strings.ToValidUTF8(strings.TrimRight(string(b[12:12+n]), "\x00"), "?")
	if failed != 0 {
		return "", false, &Error{text}
	}
	return text, again != 0, nil
}
