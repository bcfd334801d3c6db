package guest

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
)

// buffer is what a copy between descriptor and stream goes through. Most
// commands say little, and an agent should need little then: it grows to a
// pipe's size when it was filled once.
type buffer struct {
	small [2 << 10]byte
	large []byte
}

const pipeSize = 64 << 10

func (b *buffer) bytes() []byte {
	if b.large != nil {
		return b.large
	}
	return b.small[:]
}

func (b *buffer) used(n int) {
	if b.large == nil && n == len(b.small) {
		b.large = make([]byte, pipeSize)
	}
}

// execution is one command of the daemon's and what carries its streams.
type execution struct {
	*request
	child *child
	stdio *stdio
}

// exec runs a command until it has ended and its output is sent, or until the
// daemon goes away. What it leaves in the background keeps running; output of
// that after the command's own end is lost.
func (s *server) exec(q *request) {
	e := &execution{request: q}
	if err := e.start(s); err != nil {
		q.fail(err)
		return
	}
	q.reply(wire.Reply{Started: true})

	var outputs, input sync.WaitGroup
	outputs.Go(func() { e.copyOut(e.stdio.stdout, q.data[0]) })
	if e.stdio.stderr != nil {
		outputs.Go(func() { e.copyOut(e.stdio.stderr, q.data[1]) })
	}
	if e.stdio.stdin != nil {
		input.Go(e.copyIn)
	}
	gone := q.closing(e.obey)
	defer func() {
		e.stdio.hangUp()
		q.release()
		input.Wait()
		outputs.Wait()
		<-gone
	}()

	select {
	case <-e.child.done:
	case <-gone:
		// The terminal's line dropped, and a pipe's reader went: one that
		// wants to live on ignores it (nohup). A stopped one must be woken
		// to learn of it, as the kernel does for terminals.
		e.child.signal(unix.SIGHUP, true)
		e.child.signal(unix.SIGCONT, true)
		return
	}
	q.reply(wire.Reply{Exit: &wire.Exit{Code: e.child.exitCode()}})
	e.stdio.finish()
	sent := make(chan struct{})
	go func() {
		outputs.Wait()
		close(sent)
	}()
	select {
	case <-sent:
		q.reply(wire.Reply{Done: true})
	case <-gone:
	}
}

// start resolves the request against the entry point's process and starts it.
func (e *execution) start(s *server) error {
	req := e.Exec
	user, dir := s.base.User, s.base.WorkDir
	if req.User != "" {
		user = req.User
	}
	if req.WorkDir != "" {
		dir = req.WorkDir
	}
	cmd, err := prepare(req.Command, slices.Concat(s.base.Env, req.Env), user, dir, req.TTY)
	if err != nil {
		return err
	}
	if req.TTY {
		e.stdio, err = newTerminal(wire.Size{Cols: req.Cols, Rows: req.Rows}, req.Stdin, cmd.user)
	} else {
		e.stdio, err = newPipes(req.Stdin, cmd.user)
	}
	if err != nil {
		return err
	}
	e.child, err = cmd.start(s.reaper, e.stdio.theirs, req.TTY)
	e.stdio.started()
	if err != nil {
		e.stdio.hangUp()
	}
	return err
}

// obey does what the daemon asks of the running command. A size or a signal that can't be had has nobody to
// be reported to, and the command goes on without.
func (e *execution) obey(c wire.Control) {
	if c.Resize != nil && e.stdio.tty {
		_ = resize(e.stdio.stdout, *c.Resize)
	}
	if sig, ok := parseSignal(c.Signal); ok {
		e.child.signal(sig, true)
	}
}

// copyOut sends what the command writes, and ends the stream.
func (e *execution) copyOut(file *os.File, stream *yamux.Stream) {
	var buf buffer
	defer stream.Close()
	write := func(p []byte) error {
		_, err := stream.Write(p)
		return err
	}
	for {
		p := buf.bytes()
		n, err := file.Read(p)
		if n > 0 && write(p[:n]) != nil {
			return // the daemon is gone
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = drain(file, p, write) // the pipe's end, or the daemon's
			return
		}
		if err != nil {
			return // io.EOF, EIO of a terminal, or hung up
		}
		buf.used(n)
	}
}

// copyIn feeds the command until the daemon ends the stream or the command
// stops to listen.
func (e *execution) copyIn() {
	var buf buffer
	stream, file := e.data[0], e.stdio.stdin
	for {
		p := buf.bytes()
		n, err := stream.Read(p)
		if n > 0 {
			if _, err := file.Write(p[:n]); err != nil {
				e.reply(wire.Reply{StdinClosed: true})
				return
			}
		}
		switch {
		case err == nil:
		case err != io.EOF || stream.Session().IsClosed():
			return // no end of the input: the command will be hung up
		case e.stdio.tty:
			_ = sendEOF(file)
			return
		default:
			file.Close()
			return
		}
		buf.used(n)
	}
}
