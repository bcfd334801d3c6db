package keeper

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
)

// A client that doesn't read fills its queue; then the guest's writing waits
// for it, as it would at a terminal, but not longer than patience.
const (
	maxQueue = 256 << 10
	patience = 30 * time.Second
)

// attachment is a client's connection to a guest's streams. Two goroutines
// live as long as it does: the connection's own, which takes input, and one
// that sends the queue.
type attachment struct {
	guest *guest
	conn  *conn

	mu      sync.Mutex
	changed *sync.Cond // with mu: the queue, final or hurried
	queue   []byte     // frames
	final   bool       // nothing more is put
	hurried bool       // the guest is gone: put doesn't wait
}

// attach connects a client. The reply, with files, goes out before any frame.
func (g *guest) attach(c *conn, opts AttachOptions) (a *attachment, r reply, files []*os.File, err error) {
	g.outMu.Lock()
	defer g.outMu.Unlock()
	info := g.snapshot()
	if opts.Stdin && !info.Exited {
		if err := g.input.check(); err != nil {
			return nil, r, nil, err
		}
	}
	a = &attachment{guest: g, conn: c}
	a.changed = sync.NewCond(&a.mu)
	r = reply{Guest: &info}
	if opts.Replay {
		if info.Terminal {
			a.queue = appendFrame(a.queue, frameStdout, g.replay.bytes())
		} else if files, r.LogEnd, err = g.openLogs(); err != nil {
			return nil, r, nil, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.info.Exited {
		a.exit(g.info)
		return a, r, files, nil
	}
	a.hurried = g.gone
	g.attachments = append(g.attachments, a)
	return a, r, files, nil
}

// openLogs opens the log files for a client to read what came before its
// attachment: the descriptors stay with these files when they are rotated,
// and end is how much of the last one counts. Called with outMu held.
func (g *guest) openLogs() (files []*os.File, end int64, err error) {
	for _, name := range []string{logPrevious, logCurrent} {
		f, err := os.Open(filepath.Join(g.logDir, name))
		if os.IsNotExist(err) {
			continue
		}
		if err == nil {
			files = append(files, f)
			end, err = sizeOf(f)
		}
		if err != nil {
			closeFiles(files)
			return nil, 0, api.Errorf(api.CodeInternal, "replay the log of guest %s: %w", g.info.ID, err)
		}
	}
	return files, end, nil
}

func sizeOf(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// run serves an attachment until the client leaves or the last frame is sent.
func (a *attachment) run() {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		a.send()
		// Wakes the reading side, also where it waits for the guest to
		// take input.
		a.conn.CloseRead()
	}()
	a.receive()
	a.leave()
	a.conn.Close()
	<-sent
}

// receive takes input until the client leaves.
func (a *attachment) receive() {
	fd, err := descriptorOf(a.conn)
	if err != nil {
		return
	}
	r := bufio.NewReader(a.conn)
	var buf []byte
	for {
		kind, data, err := readFrame(r, buf)
		if err != nil {
			return
		}
		switch kind {
		case frameStdin:
			a.guest.input.write(data, fd)
		case frameEOF:
			a.guest.input.eof(fd)
		}
		if buf = data; cap(buf) > bufferSize {
			buf = nil
		}
	}
}

// send writes the queue to the client until the last frame is out.
func (a *attachment) send() {
	var spare []byte
	for {
		a.mu.Lock()
		for len(a.queue) == 0 && !a.final {
			a.changed.Wait()
		}
		frames := a.queue
		a.queue = spare[:0]
		a.changed.Broadcast()
		a.mu.Unlock()
		if len(frames) == 0 {
			return
		}
		if _, err := a.conn.Write(frames); err != nil {
			a.leave()
			return
		}
		if spare = frames; cap(spare) > bufferSize {
			spare = nil
		}
	}
}

// put queues output. It waits while the queue is full, up to patience: then
// the client is told that it was too slow, after all that it has not read
// yet, and is no longer waited for.
func (a *attachment) put(kind byte, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	full := func() bool {
		return !a.final && !a.hurried && len(a.queue) > 0 && len(a.queue)+len(data) > maxQueue
	}
	if full() {
		timer := time.AfterFunc(patience, a.drop)
		defer timer.Stop()
		for full() {
			a.changed.Wait()
		}
	}
	if !a.final {
		a.queue = appendFrame(a.queue, kind, data)
		a.changed.Broadcast()
	}
}

// hurry lets waiting output into the queue, however full it is: what a dead
// guest has left is bounded.
func (a *attachment) hurry() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hurried = true
	a.changed.Broadcast()
}

func (a *attachment) drop() {
	a.last(frameError, mustJSON(api.Errorf(api.CodeUnavailable,
		"attachment to guest %s: the client did not read for %s", a.guest.info.ID, patience).
		WithHint("read the rest from the log")))
	a.guest.detach(a)
}

// exit queues the news of the guest's end as the last frame.
func (a *attachment) exit(info Guest) { a.last(frameExit, mustJSON(info)) }

func (a *attachment) last(kind byte, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.final {
		a.queue = appendFrame(a.queue, kind, data)
		a.final = true
		a.changed.Broadcast()
	}
}

// leave forgets a client that is gone.
func (a *attachment) leave() {
	a.mu.Lock()
	a.queue, a.final = nil, true
	a.changed.Broadcast()
	a.mu.Unlock()
	a.guest.detach(a)
}

func (g *guest) detach(a *attachment) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.attachments, a); i >= 0 {
		g.attachments = slices.Delete(g.attachments, i, i+1)
	}
}

// descriptorOf is the number of the connection's descriptor. It is valid as
// long as the caller, who owns the connection, doesn't close it.
func descriptorOf(c *conn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = raw.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}
