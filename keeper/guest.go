package keeper

import (
	"encoding/json"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// guest is what the keeper holds of one guest. While it lives there is no
// goroutine for it: the poller calls ended and stream.ready.
type guest struct {
	server *server
	dir    string
	logDir string
	child  bool // ours to wait for, not adopted
	input  *input

	streams []*stream // stdout and stderr, or the terminal's output
	end     *watch    // of pidfd

	// mu guards everything below. It is never held while anything of the
	// guest is read or written (see poller).
	mu          sync.Mutex
	info        Guest
	pidfd       int
	stdio       stdio
	gone        bool // the process has ended; its output may be not drained yet
	forgotten   bool
	attachments []*attachment

	// outMu orders what goes to the log, the replay buffer and the
	// attachments. Lock order: outMu before mu.
	outMu  sync.Mutex
	log    *logWriter
	replay ring // of a terminal
}

// sources makes the streams of what the guest has open.
func (g *guest) sources() {
	add := func(fd int, kind byte, name string) {
		if fd >= 0 {
			g.streams = append(g.streams, &stream{guest: g, fd: fd, kind: kind, name: name})
		}
	}
	add(g.stdio.stdout, frameStdout, streamStdout)
	add(g.stdio.stderr, frameStderr, streamStderr)
	add(g.stdio.master, frameStdout, streamStdout)
}

// watchAll begins to look after a guest, whose fields are all set.
func (g *guest) watchAll() error {
	g.sources()
	var err error
	for _, s := range g.streams {
		s.mu.Lock()
		s.watch, err = g.server.poll.add(s.fd, unix.EPOLLIN, s.ready)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.end, err = g.server.poll.add(g.pidfd, unix.EPOLLIN, g.ended)
	return err
}

// output takes what the guest wrote to a stream: first into the log, then to
// those attached. Waiting for a slow one happens outside the locks.
func (g *guest) output(s *stream, data []byte) {
	g.outMu.Lock()
	g.log.write(time.Now(), s.name, data)
	if g.info.Terminal {
		g.replay.write(data)
	}
	g.mu.Lock()
	attached := slices.Clone(g.attachments)
	g.mu.Unlock()
	g.outMu.Unlock()
	for _, a := range attached {
		a.put(s.kind, data)
	}
}

// ended runs when the process has ended.
func (g *guest) ended() {
	if g.child {
		g.finish(waitChild(g.info.PID))
	} else {
		g.finish(foreignOutcome(g.info.PID, g.info.StartTime, g.pidfd))
	}
}

// finish ends the guest. Output is drained first, so that whoever hears of
// the end finds all of it in the log.
func (g *guest) finish(how outcome) {
	now := time.Now()
	g.mu.Lock()
	g.gone = true
	attached := slices.Clone(g.attachments)
	g.mu.Unlock()
	for _, a := range attached {
		a.hurry() // what waits for a slow client must not wait any more
	}
	for _, s := range g.streams {
		s.finish()
	}
	g.input.close()

	g.outMu.Lock()
	g.log.close()
	g.mu.Lock()
	g.release()
	g.setEnd(how, now)
	info := g.info
	attached = g.attachments
	g.attachments = nil
	g.mu.Unlock()
	g.outMu.Unlock()

	removeFIFOs(g.dir)
	for _, a := range attached {
		a.exit(info)
	}
	g.server.ended(g, info)
}

// release closes what is open. It is called with mu held.
func (g *guest) release() {
	g.stdio.close()
	if g.end != nil {
		g.end.remove()
		g.end = nil
	}
	if g.pidfd >= 0 {
		unix.Close(g.pidfd)
		g.pidfd = -1
	}
}

// setEnd is called with mu held.
func (g *guest) setEnd(how outcome, now time.Time) {
	g.info.Exited, g.info.Ended = true, now.UTC()
	g.info.ExitCode, g.info.Signal, g.info.ExitKnown = how.code, how.signal, how.known
	if !how.known {
		g.info.Lost = append(g.info.Lost, "exit status")
	}
}

// snapshot is the guest as the protocol shows it.
func (g *guest) snapshot() Guest {
	g.mu.Lock()
	defer g.mu.Unlock()
	info := g.info
	info.Lost = slices.Clone(info.Lost)
	return info
}

func (g *guest) signal(sig unix.Signal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone || g.pidfd < 0 {
		return api.Errorf(api.CodeConflict, "signal %s: guest %s has ended", unix.SignalName(sig), g.info.ID)
	}
	if err := unix.PidfdSendSignal(g.pidfd, sig, nil, 0); err != nil {
		if err == unix.ESRCH {
			return api.Errorf(api.CodeConflict, "signal %s: guest %s has ended: %w", unix.SignalName(sig), g.info.ID, err)
		}
		return api.Errorf(api.CodeInvalid, "signal %d to guest %s: %w", sig, g.info.ID, err)
	}
	return nil
}

func (g *guest) resize(cols, rows uint16) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.info.Terminal {
		return api.Errorf(api.CodeConflict, "resize: guest %s has no terminal", g.info.ID)
	}
	if g.stdio.master < 0 {
		return api.Errorf(api.CodeConflict, "resize: the terminal of guest %s is gone", g.info.ID)
	}
	size := &unix.Winsize{Row: rows, Col: cols}
	if err := unix.IoctlSetWinsize(g.stdio.master, unix.TIOCSWINSZ, size); err != nil {
		return api.Errorf(api.CodeInternal, "resize the terminal of guest %s: %w", g.info.ID, err)
	}
	return nil
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of this package
	}
	return b
}
