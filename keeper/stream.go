package keeper

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Output is read in pieces of bufferSize; after burst of them the others get
// their turn.
const (
	bufferSize = 32 << 10
	burst      = 16
	// drainMost bounds what is read after the guest's end: as much as the
	// largest pipe holds (fs.pipe-max-size). More can only come from a
	// process that has outlived the guest's first one, which needs a guest
	// without a PID namespace of its own.
	drainMost = 1 << 20
)

// buffers hold what is being read. They are shared, so that an idle guest
// has none.
var buffers = sync.Pool{New: func() any {
	b := make([]byte, 0, bufferSize)
	return &b
}}

// stream is one source of a guest's output.
type stream struct {
	guest *guest
	kind  byte   // frameStdout or frameStderr
	name  string // in the log

	// mu is held while reading, which the guest can stall (see poller): only
	// ready, and finish once the guest is dead, take it.
	mu    sync.Mutex
	fd    int // -1 after finish
	watch *watch
}

// ready runs when there is something to read.
func (s *stream) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	for range burst {
		if !s.read() {
			break
		}
	}
	if err := s.watch.arm(); err != nil {
		s.guest.server.log.Error("a guest's output is not watched any more", "guest", s.guest.info.ID, "stream", s.name, "error", err)
	}
}

// read moves one piece, and tells whether there may be more.
func (s *stream) read() bool {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := unix.Read(s.fd, (*buf)[:bufferSize])
	switch {
	case err == unix.EINTR:
		return true
	case err == unix.EIO:
		// The terminal's slave side is closed, ours too: somebody with
		// CAP_SYS_ADMIN on the host has hung it up (TIOCVHANGUP).
		return s.guest.reopenSlave()
	case err != nil || n == 0: // EAGAIN
		return false
	}
	s.guest.output(s, (*buf)[:n])
	return true
}

// finish reads what the guest left, and closes the stream.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range drainMost / bufferSize {
		if !s.read() {
			break
		}
	}
	if s.watch != nil {
		s.watch.remove()
	}
	s.fd = -1 // the guest's stdio closes it
}

// reopenSlave opens the slave side again while the guest lives: it may too.
func (g *guest) reopenSlave() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone || g.stdio.master < 0 {
		return false
	}
	slave, err := openSlave(g.stdio.master)
	if err != nil {
		return false
	}
	unix.Close(g.stdio.slave)
	g.stdio.slave = slave
	return false
}
