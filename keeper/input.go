package keeper

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// input is where a guest's standard input is written: a FIFO or a terminal.
type input struct {
	guest *guest

	// writing is held while writing, which the guest can stall (see
	// poller), and keeps fd open meanwhile. Lock order: writing before mu.
	writing sync.Mutex

	mu     sync.Mutex
	fd     int // -1 when there is none or no more
	closed bool
}

// check tells whether somebody may attach to the input.
func (in *input) check() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.fd >= 0:
		return nil
	case in.closed:
		return api.Errorf(api.CodeConflict, "attach: standard input of guest %s has been closed", in.guest.info.ID)
	}
	return api.Errorf(api.CodeConflict, "attach: guest %s has no standard input", in.guest.info.ID).
		WithHint("start it with stdin kept open")
}

// write gives data to the guest, as fast as it reads. It stops when client,
// on which the data came, is hung up or shut down; input that the guest
// doesn't want any more is dropped.
func (in *input) write(data []byte, client int) {
	for len(data) > 0 {
		n, full, ok := in.try(data)
		if !ok {
			return
		}
		if data = data[n:]; n > 0 {
			continue
		}
		// A blocked thread for each client that waits for its guest to
		// read, and only while it does.
		fds := []unix.PollFd{{Fd: int32(full), Events: unix.POLLOUT}, {Fd: int32(client), Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return
		}
		if fds[1].Revents != 0 {
			return
		}
	}
}

// try writes what fits. If that is nothing, full is what to wait for.
func (in *input) try(data []byte) (n, full int, ok bool) {
	in.writing.Lock()
	defer in.writing.Unlock()
	fd := in.descriptor()
	if fd < 0 {
		return 0, -1, false
	}
	n, err := unix.Write(fd, data)
	switch err {
	case nil:
		return n, -1, true
	case unix.EAGAIN, unix.EINTR:
		return 0, fd, true
	}
	return 0, -1, false // EPIPE: nobody reads any more
}

func (in *input) descriptor() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.fd
}

// eof tells the guest that no more input will come. With a terminal it types
// the character that says so, if the guest has one set.
func (in *input) eof(client int) {
	if in.guest.info.Terminal {
		in.typeEOF(client)
		return
	}
	// Without the name a later keeper won't open it again, and without the
	// holder's copy this is the last writer.
	os.Remove(filepath.Join(in.guest.dir, fifoStdin))
	in.close()
	in.guest.server.store.save(in.guest)
}

func (in *input) typeEOF(client int) {
	in.writing.Lock()
	t, err := unix.IoctlGetTermios(in.descriptor(), unix.TCGETS)
	in.writing.Unlock()
	if err == nil && t.Lflag&unix.ICANON != 0 && t.Cc[unix.VEOF] != 0 {
		in.write([]byte{t.Cc[unix.VEOF]}, client)
	}
}

// close closes the keeper's end. While a client waits in write for room, its
// poll keeps the end open; it lets go as soon as the guest has read, which it
// does anyway before it sees the end.
func (in *input) close() {
	in.writing.Lock()
	defer in.writing.Unlock()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.fd >= 0 {
		unix.Close(in.fd)
		in.fd, in.closed = -1, true
	}
}
