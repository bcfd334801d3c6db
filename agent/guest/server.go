package guest

import (
	"bufio"
	"errors"
	"net"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// server answers the daemon. It trusts it: bounds on what it sends are there
// to find mistakes, not to resist.
type server struct {
	base    Process // what commands inherit
	reaper  *reaper
	started time.Time
	// entry is the guest's entry point, nil beside an init of its own.
	entry *entryPoint
	// powerOff shuts the guest down, nil if it can't be.
	powerOff func(reboot bool) error
	// disk holds the root's writable layer, where nothing else uses that; nil
	// elsewhere.
	disk *os.File
	// devices are those of a machine that come and go; nil elsewhere.
	devices Devices

	mu    sync.Mutex
	conns map[net.Conn]bool
	idle  *time.Timer // gives memory back; armed while there is no connection
	ended bool

	sessions sync.WaitGroup
}

// idleDelay keeps a burst of short connections from paying for a collection
// each.
const idleDelay = 2 * time.Second

func newServer(base Process, r *reaper) *server {
	s := &server{base: base, reaper: r, started: time.Now(), conns: make(map[net.Conn]bool)}
	s.idle = time.AfterFunc(idleDelay, giveBack)
	s.idle.Stop()
	return s
}

// keptHeap is how much heap an idle agent keeps. The runtime's first
// collection (and its ReadMemStats as well) costs 200 to 300 KiB of its own
// for good, so that an agent which needed little is best left alone.
const keptHeap = 768 << 10

func giveBack() {
	heap := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(heap)
	sum := uint64(0)
	for _, m := range heap {
		sum += m.Value.Uint64()
	}
	if sum > keptHeap {
		debug.FreeOSMemory()
	}
}

// acceptPause is how long to wait when the guest has no descriptor or memory
// for a new connection; nothing would tell us when it has.
const acceptPause = 100 * time.Millisecond

func (s *server) serve(l net.Listener) error {
	defer s.end()
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			s.sessions.Go(func() { s.handle(conn) })
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			time.Sleep(acceptPause)
		case errors.Is(err, unix.ECONNABORTED):
		default:
			return err
		}
	}
}

// end closes what connections there are and waits for their goroutines.
func (s *server) end() {
	s.mu.Lock()
	s.ended = true
	s.idle.Stop()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.sessions.Wait()
}

func (s *server) add(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.conns[conn] = true
	s.idle.Stop()
	return true
}

func (s *server) remove(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	if len(s.conns) == 0 && !s.ended {
		s.idle.Reset(idleDelay)
	}
}

// readAhead is small: bulk passes it by.
const readAhead = 4 << 10

func (s *server) handle(conn net.Conn) {
	defer conn.Close()
	if !s.add(conn) {
		return
	}
	defer s.remove(conn)
	r := bufio.NewReaderSize(conn, readAhead)
	if _, err := wire.Answer(r, conn); err != nil {
		return // whoever it was has gone
	}
	y, err := wire.ServerSession(r, conn)
	if err != nil {
		return
	}
	var requests sync.WaitGroup
	defer requests.Wait()
	defer y.Close() // ends every wait of the requests on it
	for {
		q, err := accept(y)
		if err != nil {
			return
		}
		requests.Go(func() { s.answer(q) })
	}
}

// request is one request with its streams.
type request struct {
	wire.Request
	control *yamux.Stream
	data    []*yamux.Stream

	mu sync.Mutex // one reply at a time
}

// accept takes the streams of the next request, which come one after the
// other.
func accept(y *yamux.Session) (*request, error) {
	q := &request{}
	var err error
	if q.control, err = y.AcceptStream(); err != nil {
		return nil, err
	}
	if err := wire.ReadMessage(q.control, wire.MaxRequest, &q.Request); err != nil {
		return nil, err
	}
	if q.Streams < 0 || q.Streams > wire.MaxStreams {
		return nil, errors.New("a request with an impossible number of streams")
	}
	for range q.Streams {
		stream, err := y.AcceptStream()
		if err != nil {
			return nil, err
		}
		q.data = append(q.data, stream)
	}
	return q, nil
}

func (s *server) answer(q *request) {
	defer q.close()
	switch {
	case q.Op == wire.OpPing:
		q.reply(wire.Reply{Info: s.info()})
	case q.Op == wire.OpStat:
		stat(q)
	case q.Op == wire.OpExec && q.Exec != nil && len(q.data) >= 1 && (q.Exec.TTY || len(q.data) == 2):
		s.exec(q)
	case q.Op == wire.OpPut && len(q.data) == 1:
		put(q)
	case q.Op == wire.OpGet && len(q.data) == 1:
		get(q)
	case q.Op == wire.OpStarted: // or the agent wouldn't answer
		q.done(nil)
	case q.Op == wire.OpSignal:
		q.done(s.signal(q))
	case q.Op == wire.OpResize && q.Size != nil:
		q.done(s.resize(*q.Size))
	case q.Op == wire.OpInput && len(q.data) == 1:
		s.input(q)
	case q.Op == wire.OpMetrics:
		q.reply(wire.Reply{Metrics: fare()})
	case q.Op == wire.OpPower:
		q.done(s.power(q.Reboot))
	case q.Op == wire.OpClock:
		q.done(setClock(q))
	case q.Op == wire.OpMount && q.Volume != nil && s.devices != nil:
		q.done(s.devices.Mount(*q.Volume))
	case q.Op == wire.OpUnmount && q.Volume != nil && s.devices != nil:
		q.done(s.devices.Unmount(*q.Volume))
	case q.Op == wire.OpLink && q.Link != nil && s.devices != nil:
		q.done(s.devices.Link(*q.Link))
	case q.Op == wire.OpGrow && q.Volume != nil && s.devices != nil:
		q.done(s.devices.Grow(*q.Volume))
	case q.Op == wire.OpLayer && len(q.data) == 1:
		s.layer(q)
	case q.Op == wire.OpRelayer && len(q.data) == 1:
		s.relayer(q)
	default:
		q.fail(api.Errorf(api.CodeUnsupported, "the guest's agent doesn't know the request %q", q.Op).
			WithHint("restart the instance to give it this host's agent"))
	}
}

func (s *server) info() *wire.Info {
	info := &wire.Info{PID: os.Getpid(), UptimeSeconds: int64(time.Since(s.started).Seconds())}
	if b, ok := debug.ReadBuildInfo(); ok {
		info.Release = b.Main.Version
	}
	return info
}

// reply sends a reply. That nobody is there to take it shows in the control
// stream's reader.
func (q *request) reply(r wire.Reply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	_ = wire.WriteMessage(q.control, r)
}

func (q *request) fail(err error) {
	q.reply(wire.Reply{Error: api.AsError(err)})
}

// done acknowledges a request, or says why it can't be done.
func (q *request) done(err error) {
	if err != nil {
		q.fail(err)
		return
	}
	q.reply(wire.Reply{Done: true})
}

// release wakes whoever waits on one of the streams, and fails what they do
// next.
func (q *request) release() {
	past := time.Unix(1, 0)
	q.control.SetDeadline(past)
	for _, s := range q.data {
		s.SetDeadline(past)
	}
}

// closing returns a channel that is closed when the host has lost interest:
// it ended its side of the control stream, or went away. handle, if given,
// gets what controls it sends before. release ends it as well.
func (q *request) closing(handle func(wire.Control)) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var c wire.Control
			if err := wire.ReadMessage(q.control, wire.MaxControl, &c); err != nil {
				return
			}
			if handle != nil {
				handle(c)
			}
		}
	}()
	return gone
}

func (q *request) close() {
	for _, s := range q.data {
		s.Close()
	}
	q.control.Close()
}

// releaseWhenClosing releases the request when the host has lost interest,
// until the returned function is called.
func (q *request) releaseWhenClosing() (stop func()) {
	gone := q.closing(nil)
	var watch sync.WaitGroup
	watch.Go(func() {
		<-gone
		q.release()
	})
	return func() {
		q.release()
		watch.Wait()
	}
}
