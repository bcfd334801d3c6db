package keeper

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// store is the keeper's side of the holder (see holder.go). Whatever fails
// here costs nothing as long as the keeper lives: it is logged, and the
// holder replaced.
type store struct {
	path string
	log  *slog.Logger
	all  func() // saves every guest anew

	mu      sync.Mutex
	conn    *conn // nil when there is no holder
	since   time.Time
	closing chan struct{} // closed by close
	watcher sync.WaitGroup
}

// saved is what the holder keeps of a guest, beside the open files that
// Files names.
type saved struct {
	Guest  Guest    `json:"guest"`
	Dir    string   `json:"dir"`
	LogDir string   `json:"logDir"`
	Closed bool     `json:"closed,omitempty"` // stdin is
	Files  []string `json:"files,omitempty"`
}

// heldGuest is a guest that an earlier keeper has left with the holder.
type heldGuest struct {
	saved
	files []*os.File
}

// openStore finds the holder of an earlier keeper, and takes a copy of what
// it has, or starts one.
func openStore(path string, log *slog.Logger, all func()) (*store, []heldGuest) {
	st := &store{path: path, log: log, all: all, closing: make(chan struct{})}
	st.mu.Lock()
	defer st.mu.Unlock()
	held, err := st.connect()
	if err != nil {
		err = st.replace()
	}
	if err != nil {
		log.Error("no holder: terminals and open inputs will not survive the keeper", "error", err)
	}
	return st, held
}

const (
	// holderPatience is how long the holder may take for anything.
	holderPatience = 5 * time.Second
	// holderPause is how often at most a holder is replaced.
	holderPause = time.Second
)

// connect is called with mu held.
func (st *store) connect() (held []heldGuest, err error) {
	uc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: st.path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	c := &conn{uc}
	c.SetDeadline(time.Now().Add(holderPatience))
	if err = c.checkPeer(); err == nil {
		held, err = takeAll(c)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.SetDeadline(time.Time{})
	st.conn, st.since = c, time.Now()
	st.watcher.Go(func() { st.watch(c) })
	return held, nil
}

// takeAll asks for everything. The holder goes on holding it.
func takeAll(c *conn) (held []heldGuest, err error) {
	if err := c.send(holderMessage{Op: holdTake}); err != nil {
		return nil, err
	}
	for {
		var m holderMessage
		files, err := c.receive(&m)
		if err == nil && m.Op == holdTake {
			return held, nil
		}
		h := heldGuest{files: files}
		if err == nil {
			err = json.Unmarshal(m.Record, &h.saved)
		}
		if err != nil {
			closeFiles(files)
			for _, h := range held {
				closeFiles(h.files)
			}
			return nil, err
		}
		held = append(held, h)
	}
}

// watch notices the holder's end, and starts another. Nothing is ever read:
// it does not speak unless asked.
func (st *store) watch(c *conn) {
	_, _ = c.Read(make([]byte, 1))
	select {
	case <-time.After(time.Until(st.since.Add(holderPause))):
	case <-st.closing:
		return
	}
	st.mu.Lock()
	select {
	case <-st.closing:
		st.mu.Unlock()
		return
	default:
	}
	c.Close()
	st.conn = nil
	err := st.replace()
	st.mu.Unlock()
	if err != nil {
		st.log.Error("the holder has ended, and there is no other: terminals and open inputs will not survive the keeper", "error", err)
		return
	}
	st.log.Warn("the holder has ended, and was replaced")
	st.all()
}

// save gives the holder the present state of a guest, unless it was forgotten
// meanwhile: state is taken and sent under one lock, so that a later state is
// never replaced by an earlier one.
func (st *store) save(g *guest) {
	st.mu.Lock()
	defer st.mu.Unlock()
	record, fds, ok := g.record()
	if ok {
		st.send(holderMessage{Op: holdPut, ID: record.Guest.ID, Record: mustJSON(record)}, fds...)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// drop lets the holder forget a guest that is marked as forgotten.
func (st *store) drop(id string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.send(holderMessage{Op: holdDrop, ID: id})
}

// send is called with mu held.
func (st *store) send(m holderMessage, fds ...int) {
	if st.conn == nil {
		return
	}
	st.conn.SetWriteDeadline(time.Now().Add(holderPatience))
	if err := st.conn.sendFDs(m, fds); err != nil {
		st.log.Error("the holder does not take what it is given", "error", err)
		st.conn.Close() // watch replaces it
	}
}

// close leaves the holder, which ends if nothing is left to hold.
func (st *store) close() {
	st.mu.Lock()
	close(st.closing)
	if st.conn != nil {
		st.conn.Close()
		os.Remove(st.path)
	}
	st.mu.Unlock()
	st.watcher.Wait()
}

// record is what the holder shall have: the guest's state, and duplicates of
// its descriptors in the order of Files.
func (g *guest) record() (r saved, fds []int, ok bool) {
	add := func(name string, fd int) {
		if fd < 0 {
			return
		}
		if fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			r.Files = append(r.Files, name)
			fds = append(fds, fd)
		}
	}
	g.input.mu.Lock()
	add(fifoStdin, g.input.fd)
	r.Closed = g.input.closed
	g.input.mu.Unlock()
	g.mu.Lock()
	defer g.mu.Unlock()
	r.Guest, r.Dir, r.LogDir = g.info, g.dir, g.logDir
	add("pidfd", g.pidfd)
	add(fifoStdout, g.stdio.stdout)
	add(fifoStderr, g.stdio.stderr)
	add("terminal", g.stdio.master)
	return r, fds, !g.forgotten
}
