package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/hashicorp/yamux"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// Exec is a command in the guest. Its streams are independent of each other:
// one that nobody reads holds up the command's own writing to it and nothing
// else.
type Exec struct {
	call  *call
	what  string
	stdin *stdin
	out   io.Reader
	err   io.Reader

	done   chan struct{} // closed when the guest has said its last
	exited chan struct{} // closed when code or failure is set
	once   sync.Once
	code   int
	failed error
	all    bool // the guest has sent all output; read after done
}

// Exec starts a command; ctx bounds the start only. Errors that mean that the
// command could not be executed have an ExitCode. Whoever gets an Exec must
// Close it.
func (c *Client) Exec(ctx context.Context, req ExecRequest) (*Exec, error) {
	if err := check(req); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("executing %s in the guest", req.Command[0])
	streams := 2
	if req.TTY {
		streams = 1
	}
	call, err := c.open(ctx, what, &wire.Request{Op: wire.OpExec, Streams: streams, Exec: &req})
	if err != nil {
		return nil, err
	}
	reply, err := call.reply(ctx, what)
	if err == nil && !reply.Started {
		err = broken(what, errUnexpected)
	}
	if err != nil {
		call.close()
		return nil, err
	}
	e := &Exec{call: call, what: what, done: make(chan struct{}), exited: make(chan struct{})}
	e.stdin = &stdin{stream: call.data[0]}
	e.out = &output{exec: e, stream: call.data[0]}
	if !req.TTY {
		e.err = &output{exec: e, stream: call.data[1]}
	}
	if !req.Stdin {
		e.stdin.refuse()
	}
	go e.follow()
	return e, nil
}

// check refuses what could never be executed, so that the guest needn't.
func check(req ExecRequest) error {
	if len(req.Command) == 0 || req.Command[0] == "" {
		return api.Errorf(api.CodeInvalid, "executing in the guest: no command is given").WithField(api.FieldCommand)
	}
	for _, list := range [][]string{req.Command, req.Env, {req.User, req.WorkDir}} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return api.Errorf(api.CodeInvalid, "executing in the guest: %q contains a zero byte", s).WithField(api.FieldCommand)
			}
		}
	}
	for _, kv := range req.Env {
		if strings.IndexByte(kv, '=') < 1 {
			return api.Errorf(api.CodeInvalid, "executing in the guest: environment %q is not KEY=VALUE", kv).WithField("env")
		}
	}
	return nil
}

// follow reads the replies until the last, the end of the session or Close.
func (e *Exec) follow() {
	defer close(e.done)
	for {
		reply, err := e.call.next(e.what)
		switch {
		case err != nil:
			e.end(0, err)
			return
		case reply.StdinClosed:
			e.stdin.refuse()
		case reply.Exit != nil:
			e.stdin.refuse()
			e.end(reply.Exit.Code&0xff, nil)
		case reply.Done:
			e.all = true
			e.end(0, broken(e.what, errUnexpected)) // if there was no Exit before
			return
		default:
			e.end(0, broken(e.what, errUnexpected))
			return
		}
	}
}

func (e *Exec) end(code int, err error) {
	e.once.Do(func() {
		e.code, e.failed = code, err
		close(e.exited)
	})
}

// Stdin is the command's standard input; closing it is its end of file (for
// a terminal, the end of file character). Write fails with io.ErrClosedPipe
// when the request has no Stdin, and once nobody in the guest reads it any
// more.
func (e *Exec) Stdin() io.WriteCloser { return e.stdin }

// Stdout is the command's standard output, or its terminal's. It ends with
// io.EOF when the guest said so, and with another error if the connection
// broke before.
func (e *Exec) Stdout() io.Reader { return e.out }

// Stderr is the command's standard error; nil with a terminal.
func (e *Exec) Stderr() io.Reader { return e.err }

// Resize tells the terminal its new size.
func (e *Exec) Resize(cols, rows uint16) error {
	return e.send(wire.Control{Resize: &wire.Size{Cols: cols, Rows: rows}})
}

// Signal sends a signal by name (SIGINT, INT or a number) to the command's
// process group. It is no error if the command has ended; a name that the
// guest doesn't know is ignored there.
func (e *Exec) Signal(name string) error {
	return e.send(wire.Control{Signal: name})
}

func (e *Exec) send(c wire.Control) error {
	select {
	case <-e.exited:
		return nil
	default:
	}
	if err := wire.WriteMessage(e.call.control, c); err != nil {
		return broken(e.what, err)
	}
	return nil
}

// Wait waits for the end of the command, not for that of its output; 128+n
// when signal n ended it. It doesn't depend on anyone reading the output.
func (e *Exec) Wait(ctx context.Context) (code int, err error) {
	select {
	case <-e.exited:
		return e.code, e.failed
	case <-ctx.Done():
		return 0, interrupted(ctx, e.what)
	}
}

// Close detaches and frees the streams. A command that still runs loses them
// and gets SIGHUP, with its process group; one that ignores it goes on.
func (e *Exec) Close() error {
	e.call.close()
	return nil
}

// stdin is the writing half of the first data stream.
type stdin struct {
	stream *yamux.Stream
	mu     sync.Mutex
	gone   bool
}

func (s *stdin) Write(p []byte) (int, error) {
	if s.refused() {
		return 0, io.ErrClosedPipe
	}
	n, err := s.stream.Write(p)
	if err != nil && s.refused() {
		err = io.ErrClosedPipe
	}
	return n, err
}

func (s *stdin) Close() error { return s.stream.Close() }

// refuse makes every Write fail, also one that waits.
func (s *stdin) refuse() {
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	s.stream.SetWriteDeadline(past)
}

func (s *stdin) refused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone
}

// output is the reading half of a data stream.
type output struct {
	exec   *Exec
	stream *yamux.Stream
}

// Read tells the end of the stream from the end of the session, which yamux
// doesn't: the guest says Done after it ended its streams.
func (o *output) Read(p []byte) (int, error) {
	n, err := o.stream.Read(p)
	if errors.Is(err, yamux.ErrTimeout) {
		return n, io.ErrClosedPipe // by Exec.Close
	}
	if err != io.EOF || !o.exec.sessionEnded() {
		return n, err
	}
	<-o.exec.done
	if !o.exec.all {
		return n, broken(o.exec.what, errors.New("the connection ended before the output"))
	}
	return n, io.EOF
}

func (e *Exec) sessionEnded() bool { return e.call.control.Session().IsClosed() }
