package keeper

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// The holder is a second process, one per keeper, that does nothing but hold
// duplicates of the descriptors which must not be closed when the keeper is
// killed: the writing end of a guest's input (else the guest reads an end of
// file), the master of its terminal (else it is hung up), its output FIFOs
// (else the last lines of a guest that ends meanwhile are lost) and its pidfd
// (which knows how it ended). A new keeper takes all of it over, so a killed
// keeper loses only what terminals showed before. Only when both are killed
// at once, guests must be adopted by their names, and terminals are lost.
// It ends when its keeper does, if it holds nothing then, or nobody could ever
// ask for it because the socket was removed.

// The operations of a holder. None but holdTake is answered.
const (
	holdPut  = "put"  // ID, Record, files: replaces what it has under that id
	holdDrop = "drop" // ID
	holdTake = "take" // answered by a put for each id, and a take
)

type holderMessage struct {
	Op     string          `json:"op"`
	ID     string          `json:"id,omitempty"`
	Record json.RawMessage `json:"record,omitempty"`
}

type heldEntry struct {
	record json.RawMessage
	files  []*os.File
}

// holderMain serves one keeper after the other, on the listener that it has
// inherited as descriptor 3.
func holderMain() error {
	debug.SetGCPercent(50)
	// It ends with its work and not by a signal.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	if err := os.WriteFile("/proc/self/comm", []byte("cleave-holder"), 0); err != nil {
		return err
	}
	f := os.NewFile(3, "listener")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return err
	}
	// Without its socket no keeper will come any more.
	events, err := whenGone(l.Addr().String(), func() { l.Close() })
	if err != nil {
		return err
	}
	defer events.Close()
	held := make(map[string]heldEntry)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		serveHolder(&conn{c.(*net.UnixConn)}, held)
		if len(held) == 0 {
			return l.Close() // nothing that another keeper could want
		}
	}
}

// serveHolder serves one keeper until it leaves.
func serveHolder(c *conn, held map[string]heldEntry) {
	defer c.Close()
	if c.checkPeer() != nil {
		return
	}
	for {
		var m holderMessage
		files, err := c.receive(&m)
		if err != nil {
			closeFiles(files)
			return
		}
		switch m.Op {
		case holdPut:
			closeFiles(held[m.ID].files)
			held[m.ID] = heldEntry{m.Record, files}
		case holdDrop:
			closeFiles(held[m.ID].files)
			delete(held, m.ID)
		case holdTake:
			for id, e := range held {
				if err := c.send(holderMessage{Op: holdPut, ID: id, Record: e.record}, e.files...); err != nil {
					return
				}
			}
			if err := c.send(holderMessage{Op: holdTake}); err != nil {
				return
			}
		}
	}
}

// replace starts a holder. It is called with mu held.
func (st *store) replace() error {
	l, err := listen(st.path)
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	l.Close()
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"cleave-keeper-holder"}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{envRole + "=" + roleHolder, "GOMAXPROCS=1"},
		Files: []*os.File{nil, os.Stderr, os.Stderr, f},
		Sys:   &unix.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	go func() { _, _ = p.Wait() }() // ends with the holder; one that outlives the keeper is init's
	_, err = st.connect()
	return err
}

// restore takes over the guests that the holder had from an earlier keeper.
func (s *server) restore(held []heldGuest) {
	for _, h := range held {
		g, err := s.revive(h)
		closeFiles(h.files)
		if err == nil {
			s.settle(h.Guest.ID, g)
			if !g.info.Exited {
				err = s.resume(g)
			}
		}
		if err != nil {
			s.log.Error("a guest could not be taken over", "guest", h.Guest.ID, "error", err)
			continue
		}
		s.log.Info("a guest was taken over", "guest", h.Guest.ID, "pid", h.Guest.PID, slog.Bool("exited", h.Guest.Exited))
	}
}

func (s *server) revive(h heldGuest) (*guest, error) {
	g := &guest{server: s, dir: h.Dir, logDir: h.LogDir, info: h.Guest, stdio: noStdio(), pidfd: -1}
	g.input = &input{guest: g, fd: -1, closed: h.Closed}
	if h.Guest.Exited {
		return g, nil
	}
	places := map[string]*int{
		"pidfd": &g.pidfd, fifoStdin: &g.input.fd, fifoStdout: &g.stdio.stdout,
		fifoStderr: &g.stdio.stderr, "terminal": &g.stdio.master,
	}
	err := error(nil)
	for i, name := range h.Files {
		place := places[name]
		if place == nil || i >= len(h.files) {
			continue
		}
		if *place, err = unix.FcntlInt(h.files[i].Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			break
		}
	}
	if err == nil && g.stdio.master >= 0 {
		g.stdio.slave, err = openSlave(g.stdio.master)
	}
	if err == nil {
		g.log, err = newLogWriter(h.LogDir, logLimit)
	}
	if err != nil {
		g.input.close()
		g.release()
		return nil, api.Errorf(api.CodeInternal, "take over guest %s: %w", h.Guest.ID, err)
	}
	return g, nil
}

// saveAll gives every guest to a new holder.
func (s *server) saveAll() {
	s.mu.Lock()
	all := make([]*guest, 0, len(s.guests))
	for _, g := range s.guests {
		all = append(all, g)
	}
	s.mu.Unlock()
	for _, g := range all {
		s.store.save(g)
	}
}
