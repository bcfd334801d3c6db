package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
)

// Command is what to execute in a host.
type Command struct {
	api.ExecRequest
	Stdin          io.Reader // nil: nothing
	Stdout, Stderr io.Writer // nil: dropped
}

// Exec executes a command, and returns its exit status, 128+n when signal n
// ended it. When ctx ends first the command is hung up.
func (h *Host) Exec(ctx context.Context, c Command) (int, error) {
	client, err := h.Agent(ctx)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	status, err := Exec(ctx, client, c)
	if err != nil {
		err = fmt.Errorf("host %s: %w", h.Name, err)
	}
	return status, err
}

// Exec executes a command by an agent that is connected to.
func Exec(ctx context.Context, client *agent.Client, c Command) (int, error) {
	c.ExecRequest.Stdin = c.Stdin != nil
	e, err := client.Exec(ctx, c.ExecRequest)
	if err != nil {
		return 0, err
	}
	defer e.Close()
	if c.Stdin != nil {
		go func() { // it ends with the input, or by e.Close at its next write
			_, _ = io.Copy(e.Stdin(), c.Stdin)
			e.Stdin().Close()
		}()
	}
	var output sync.WaitGroup
	copyTo := func(w io.Writer, r io.Reader) {
		if r == nil {
			return
		}
		if w == nil {
			w = io.Discard
		}
		output.Go(func() { _, _ = io.Copy(w, r) })
	}
	copyTo(c.Stdout, e.Stdout())
	copyTo(c.Stderr, e.Stderr())
	// A reader of the output ends with the connection, if not before.
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	status, err := e.Wait(ctx)
	output.Wait()
	return status, err
}

// Output executes a command, and returns what it printed. That it fails is an
// error with what it said.
func (h *Host) Output(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	status, err := h.Exec(ctx, Command{ExecRequest: api.ExecRequest{Command: args}, Stdout: &out, Stderr: &errs})
	if err == nil && status != 0 {
		err = fmt.Errorf("host %s: %s: %w: %s", h.Name, strings.Join(args, " "), ExitError(status), bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), err
}

// Shell is Output of a line of shell.
func (h *Host) Shell(ctx context.Context, line string) (string, error) {
	return h.Output(ctx, "sh", "-c", line)
}

// ExitError is the exit status of a command that failed.
type ExitError int

func (e ExitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Status is the exit status that an error of Output or Shell is about.
func Status(err error) (int, bool) {
	var e ExitError
	ok := errors.As(err, &e)
	return int(e), ok
}
