package keeper

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// server is the keeper: the guests, and the connections of its clients.
type server struct {
	boot  string // names this incarnation
	log   *slog.Logger
	poll  *poller
	store *store
	quit  chan struct{} // closed when the keeper shall end
	// unlisten closes and removes the socket.
	unlisten func()

	mu       sync.Mutex
	guests   map[string]*guest
	starting map[string]bool // ids that start or adopt right now
	stopping bool
	exits    map[*subscriber]bool
	conns    map[*conn]bool
	serving  sync.WaitGroup
}

func newServer(boot string, log *slog.Logger) (*server, error) {
	poll, err := newPoller()
	if err != nil {
		return nil, err
	}
	return &server{
		boot: boot, log: log, poll: poll,
		quit:     make(chan struct{}),
		guests:   make(map[string]*guest),
		starting: make(map[string]bool),
		exits:    make(map[*subscriber]bool),
		conns:    make(map[*conn]bool),
	}, nil
}

// accept serves connections until the listener is closed.
func (s *server) accept(l *net.UnixListener) {
	for {
		uc, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory: no event tells when there are
			// some again.
			s.log.Error("a client could not be accepted", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		c := &conn{uc}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		s.serving.Go(func() {
			s.serve(c)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// close ends what accept began. Guests are left alone.
func (s *server) close() {
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
	s.poll.close()
}

const helloTimeout = 10 * time.Second

func (s *server) serve(c *conn) {
	defer c.Close()
	if err := s.welcome(c); err != nil {
		if !gone(err) {
			s.log.Warn("a client was refused", "error", err)
		}
		return
	}
	for {
		var r request
		files, err := c.receive(&r)
		if err != nil {
			closeFiles(files)
			if !gone(err) {
				s.log.Warn("a client sent what is no request", "error", err)
			}
			return
		}
		more := s.handle(c, &r, files)
		closeFiles(files)
		if !more {
			return
		}
	}
}

func (s *server) welcome(c *conn) error {
	if err := c.checkPeer(); err != nil {
		return err
	}
	c.SetDeadline(time.Now().Add(helloTimeout))
	var theirs hello
	files, err := c.receive(&theirs)
	closeFiles(files)
	if err != nil {
		return err
	}
	mine := hello{Protocol: protocolName, Oldest: oldestVersion, Newest: newestVersion, PID: os.Getpid(), Boot: s.boot}
	_, refusal := agree(theirs)
	mine.Error = refusal
	if err := c.send(mine); err != nil {
		return err
	}
	if refusal != nil {
		return refusal
	}
	return c.SetDeadline(time.Time{})
}

// handle answers one request, and tells whether the connection waits for more.
func (s *server) handle(c *conn, r *request, files []*os.File) bool {
	switch r.Op {
	case opExits:
		s.serveExits(c)
		return false
	case opAttach:
		s.serveAttach(c, r)
		return false
	case opList:
		return s.sendList(c) == nil
	case opStop:
		err := s.stop()
		_ = answer(c, reply{}, err)
		if err == nil {
			close(s.quit)
		}
		return err != nil
	}
	var out reply
	guest, err := s.change(r, files)
	if err == nil && guest.ID != "" {
		out.Guest = &guest
	}
	return answer(c, out, err) == nil
}

// change carries out the requests that are one question and one answer.
func (s *server) change(r *request, files []*os.File) (Guest, error) {
	switch r.Op {
	case opStart:
		if r.Start == nil {
			break
		}
		return s.start(r.ID, r.Start, files)
	case opAdopt:
		if r.Adopt == nil {
			break
		}
		return s.adopt(*r.Adopt)
	case opForget:
		return Guest{}, s.forget(r.ID)
	case opSignal, opResize:
		g, err := s.find(r.ID)
		if err != nil {
			return Guest{}, err
		}
		if r.Op == opSignal {
			return Guest{}, g.signal(unix.Signal(r.Signal))
		}
		return Guest{}, g.resize(r.Cols, r.Rows)
	}
	return Guest{}, api.Errorf(api.CodeUnsupported, "request %q: this keeper doesn't know it", r.Op).
		WithHint("the keeper may be older than the daemon: it is replaced once no guest runs")
}

func answer(c *conn, r reply, err error, files ...*os.File) error {
	if err != nil {
		r.Error = api.AsError(err)
	}
	return c.send(r, files...)
}

func (s *server) find(id string) (*guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.guests[id]; g != nil {
		return g, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "the keeper has no guest %s", id)
}

// listPage keeps a reply far below the limit of a message.
const listPage = 500

func (s *server) sendList(c *conn) error {
	s.mu.Lock()
	all := make([]*guest, 0, len(s.guests))
	for _, g := range s.guests {
		all = append(all, g)
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *guest) int { return strings.Compare(a.info.ID, b.info.ID) })
	for page := range slices.Chunk(all, listPage) {
		r := reply{More: true, Guests: make([]Guest, len(page))}
		for i, g := range page {
			r.Guests[i] = g.snapshot()
		}
		if err := c.send(r); err != nil {
			return err
		}
	}
	return c.send(reply{})
}

func (s *server) serveAttach(c *conn, r *request) {
	g, err := s.find(r.ID)
	if err != nil {
		_ = answer(c, reply{}, err)
		return
	}
	var opts AttachOptions
	if r.Attach != nil {
		opts = *r.Attach
	}
	a, out, files, err := g.attach(c, opts)
	if err != nil {
		_ = answer(c, reply{}, err)
		return
	}
	err = answer(c, out, nil, files...)
	closeFiles(files)
	if err != nil {
		a.leave()
		return
	}
	a.run()
}

// forget drops the record of a guest that has ended.
func (s *server) forget(id string) error {
	g, err := s.find(id)
	if err != nil {
		return err
	}
	g.mu.Lock()
	ended := g.info.Exited
	g.forgotten = ended
	g.mu.Unlock()
	if !ended {
		return api.Errorf(api.CodeConflict, "forget guest %s: it has not ended", id)
	}
	s.mu.Lock()
	delete(s.guests, id)
	s.mu.Unlock()
	s.store.drop(id)
	return nil
}

// stop agrees to end the keeper, if that harms nobody. The caller closes quit
// when it has said so to whom it may concern.
func (s *server) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.guests) + len(s.starting); n > 0 {
		return api.Errorf(api.CodeInUse, "stop the keeper: it holds %d guests, or the records of their ends", n).
			WithHint("stop and delete them first")
	}
	if s.stopping {
		return api.Errorf(api.CodeConflict, "stop the keeper: it is stopping already")
	}
	s.stopping = true
	s.unlisten() // before the answer: who wants a keeper from now on starts one
	return nil
}

// unreachable runs when the socket has been removed.
func (s *server) unreachable() {
	err := s.stop()
	if err == nil {
		close(s.quit)
	} else if !api.IsCode(err, api.CodeConflict) { // else stop has removed it
		s.log.Error("the socket was removed: nobody can connect any more", "but", err)
	}
}

// reserve takes an id for a guest that is about to be.
func (s *server) reserve(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return api.Errorf(api.CodeUnavailable, "the keeper is stopping")
	case s.starting[id]:
		return api.Errorf(api.CodeBusy, "guest %s is being started", id)
	case s.guests[id] != nil:
		return api.Errorf(api.CodeExists, "the keeper has a guest %s already", id).
			WithHint("forget it once it has ended")
	}
	s.starting[id] = true
	return nil
}

// settle ends what reserve began: with a guest, or with none.
func (s *server) settle(id string, g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.starting, id)
	if g != nil {
		s.guests[id] = g
	}
}
