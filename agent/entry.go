package agent

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/cleave-project/cleave/agent/wire"
)

// Metrics are what only the guest knows of itself; sizes in bytes.
type Metrics = wire.Metrics

// Started waits until the guest's entry point has been executed. Its error is
// why it could not be.
func (c *Client) Started(ctx context.Context) error {
	return c.do(ctx, "waiting for the guest's entry point", &wire.Request{Op: wire.OpStarted})
}

// SignalEntry sends a signal by name (SIGTERM, TERM or a number) to the
// guest's entry point.
func (c *Client) SignalEntry(ctx context.Context, name string) error {
	return c.do(ctx, "signalling the guest's entry point", &wire.Request{Op: wire.OpSignal, Signal: name})
}

// ResizeEntry tells the terminal of the guest's entry point, or the console of
// a system, its new size.
func (c *Client) ResizeEntry(ctx context.Context, cols, rows uint16) error {
	return c.do(ctx, "setting the size of the guest's terminal", &wire.Request{Op: wire.OpResize, Size: &wire.Size{Cols: cols, Rows: rows}})
}

// Metrics asks the guest how it fares. A guest can lie about that.
func (c *Client) Metrics(ctx context.Context) (Metrics, error) {
	const what = "asking the guest how it fares"
	reply, err := c.ask(ctx, what, &wire.Request{Op: wire.OpMetrics})
	if err != nil {
		return Metrics{}, err
	}
	if reply.Metrics == nil {
		return Metrics{}, broken(what, errUnexpected)
	}
	return *reply.Metrics, nil
}

// PowerOff asks a guest with an init of its own to shut down in good order,
// and, with reboot, to begin again. It doesn't wait for that. A guest whose
// connection ends in place of a reply was quicker than that.
func (c *Client) PowerOff(ctx context.Context, reboot bool) error {
	what := "asking the guest to power off"
	if reboot {
		what = "asking the guest to reboot"
	}
	err := c.do(ctx, what, &wire.Request{Op: wire.OpPower, Reboot: reboot})
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// SyncClock sets the guest's clock, which stood still while the guest was
// paused or its memory lay on a disk.
func (c *Client) SyncClock(ctx context.Context, now time.Time) error {
	return c.do(ctx, "setting the guest's clock", &wire.Request{Op: wire.OpClock, Time: now})
}

// do sends a request that is only acknowledged.
func (c *Client) do(ctx context.Context, what string, req *wire.Request) error {
	reply, err := c.ask(ctx, what, req)
	if err == nil && !reply.Done {
		err = broken(what, errUnexpected)
	}
	return err
}

// Input is the standard input of the guest's entry point.
type Input struct {
	stdin
	call *call
	done chan struct{} // closed when the guest has said its last
	err  error         // read after done
}

// Input opens the standard input of the guest's entry point, where it has one
// that the agent feeds; ctx is for the opening only. A connection that breaks
// ends nothing: the input can be opened again.
func (c *Client) Input(ctx context.Context) (*Input, error) {
	const what = "opening the standard input of the guest's entry point"
	call, err := c.open(ctx, what, &wire.Request{Op: wire.OpInput, Streams: 1})
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
	i := &Input{stdin: stdin{stream: call.data[0]}, call: call, done: make(chan struct{})}
	go i.follow()
	return i, nil
}

// follow reads the replies until the last; Close or the session's end brings
// it.
func (i *Input) follow() {
	defer close(i.done)
	defer i.call.close()
	const what = "writing to the guest's entry point"
	for {
		reply, err := i.call.next(what)
		switch {
		case err != nil:
			i.err = err
		case reply.StdinClosed:
			i.err = io.ErrClosedPipe
			i.refuse()
			continue
		case !reply.Done:
			i.err = broken(what, errUnexpected)
		}
		i.refuse()
		return
	}
}

// Close is the entry point's end of file. It doesn't wait for what is on its
// way: Wait does.
func (i *Input) Close() error { return i.stdin.Close() }

// Wait waits until the guest has all of the input, after Close, or takes no
// more of it, which is io.ErrClosedPipe and what Write fails with then.
func (i *Input) Wait(ctx context.Context) error {
	select {
	case <-i.done:
		return i.err
	case <-ctx.Done():
		return interrupted(ctx, "writing to the guest's entry point")
	}
}
