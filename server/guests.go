package server

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
	"github.com/cleave-project/cleave/engine"
)

type execInstance struct {
	InstanceName
	Unconditional
	Body api.ExecRequest
}

type attachConsole struct {
	InstanceName
	Unconditional
	Body *api.ConsoleRequest
}

type listStats struct {
	Listed
	Paged
}

func (s *Server) guestRoutes() {
	const tag = "guests"
	exec := route(tag, "exec-instance", http.MethodPost, "/v1/instances/{name}/exec", "Prepare to execute a command in a guest")
	exec.Description = "The command is started when the stream is opened. Closing the stream hangs the command up."
	handle(s, example(exec, map[string]any{"command": []string{"sh", "-c", "echo $HOME"}, "user": "root"}), s.execInstance)
	console := route(tag, "attach-console", http.MethodPost, "/v1/instances/{name}/console", "Prepare to attach to a guest's entry point")
	console.Description = "Closing the stream detaches and leaves the guest running."
	handle(s, example(console, map[string]any{"stdin": true, "replay": true}), s.attachConsole)
	handle(s, route(tag, "get-stats", http.MethodGet, "/v1/instances/{name}/stats", "Measure a running guest"),
		func(ctx context.Context, in *InstanceName) (*plain[api.Stats], error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			st, err := s.backend.Stats(ctx, p, in.Name)
			return plainOf(&st, err)
		})
	handle(s, route(tag, "list-stats", http.MethodGet, "/v1/stats", "Measure all running guests"),
		func(ctx context.Context, in *listStats) (*page[api.Stats], error) {
			all, err := s.backend.AllStats(ctx, in.project())
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Paged, func(st *api.Stats) string { return st.Project + "/" + st.Name })
		})
}

func (s *Server) execInstance(ctx context.Context, in *execInstance) (*plain[api.Ticket], error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	if _, err := s.backend.Instance(p, in.Name); err != nil {
		return nil, err
	}
	req := in.Body
	return plainOf(s.tickets.issue(callOf(ctx).caller.kind, func(ctx context.Context) (session, error) {
		return s.openExec(ctx, p, in.Name, req)
	}))
}

func (s *Server) attachConsole(ctx context.Context, in *attachConsole) (*plain[api.Ticket], error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	if _, err := s.backend.Instance(p, in.Name); err != nil {
		return nil, err
	}
	req := in.Body
	if req == nil {
		req = &api.ConsoleRequest{}
	}
	return plainOf(s.tickets.issue(callOf(ctx).caller.kind, func(ctx context.Context) (session, error) {
		opts := control.ConsoleOptions{ConsoleOptions: engine.ConsoleOptions{Stdin: req.Stdin, Replay: req.Replay}, Start: req.Start}
		c, _, err := s.backend.Console(ctx, p, in.Name, opts)
		if err != nil {
			return nil, err
		}
		return console{c}, nil
	}))
}

// openExec starts a command. A guest can stop its agent, or answer nothing:
// neither the caller nor we wait for that for ever.
func (s *Server) openExec(ctx context.Context, project, name string, req api.ExecRequest) (session, error) {
	ctx, cancel := context.WithTimeout(ctx, s.begin)
	defer cancel()
	c, err := s.backend.Agent(ctx, project, name)
	if err != nil {
		return nil, err
	}
	e, err := c.Exec(ctx, req)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return command{Exec: e, client: c, stdin: req.Stdin}, nil
}

// session is what a stream is connected to: a command or a console.
type session interface {
	Stdin() io.WriteCloser // nil when not asked for
	Stdout() io.Reader
	Stderr() io.Reader // nil with a terminal
	Resize(cols, rows uint16) error
	Signal(name string) error
	// Exit waits for the end; the output is then complete.
	Exit(ctx context.Context) (api.ExitStatus, error)
	Close() error
}

// command is an exec with the agent's connection that it has for itself.
type command struct {
	*agent.Exec
	client *agent.Client
	stdin  bool
}

func (c command) Stdin() io.WriteCloser {
	if !c.stdin {
		return nil
	}
	return c.Exec.Stdin()
}

func (c command) Exit(ctx context.Context) (api.ExitStatus, error) {
	code, err := c.Wait(ctx)
	return api.ExitStatus{Code: code}, err
}

func (c command) Close() error {
	return cmp.Or(c.Exec.Close(), c.client.Close())
}

// console is an attachment to the entry point.
type console struct{ *control.Console }

func (c console) Signal(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), signalTimeout)
	defer cancel()
	return c.Console.Signal(ctx, name)
}

// signalTimeout bounds the sending of a signal, which nobody waits for.
const signalTimeout = 10 * time.Second
