package client

import (
	"context"
	"errors"
	"iter"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cleave-project/cleave/api"
)

const (
	// quiet is how long Wait asks for nothing but the end: work shorter
	// than that costs one round trip and reports no progress.
	quiet = 300 * time.Millisecond
	// patience is how long Wait tries to reach a daemon that went away
	// (operations survive its restart).
	patience = 20 * time.Second
	// poll is how long one request may wait for a change.
	poll = 30 * time.Second
)

// Operations lists operations: those in progress, or all that are kept.
func (c *Client) Operations(ctx context.Context, all bool) iter.Seq2[api.Operation, error] {
	q := url.Values{}
	if all {
		q.Set("all", "true")
	}
	return pages[api.Operation](ctx, c, "/operations", q)
}

// Operation returns one operation.
func (c *Client) Operation(ctx context.Context, id string) (*api.Operation, error) {
	return do[api.Operation](ctx, c, get(name("operations", id)))
}

// CancelOperation asks for an operation to stop; Wait tells how it ended.
func (c *Client) CancelOperation(ctx context.Context, id string) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: name("operations", id) + "/cancel"})
}

// Wait follows op until it ends and returns its last state. An operation
// that failed or was cancelled is an error as well. progress, if not nil, is
// called from this goroutine with every state seen before the end, not for
// work that ends at once. Wait survives a restart of the daemon.
func (c *Client) Wait(ctx context.Context, op *api.Operation, progress func(*api.Operation)) (*api.Operation, error) {
	if progress == nil {
		progress = func(*api.Operation) {}
	}
	op, err := c.waitQuietly(ctx, op)
	for err == nil && !op.Finished() {
		progress(op)
		op, err = c.nextChange(ctx, op)
	}
	if err != nil {
		return op, err
	}
	return op, outcome(op)
}

// outcome is the error of a finished operation.
func outcome(op *api.Operation) error {
	switch {
	case op.State == api.OperationDone:
		return nil
	case op.Error != nil:
		return op.Error
	case op.State == api.OperationCancelled:
		return api.Errorf(api.CodeCancelled, "%s of %s was cancelled", op.Verb, op.Target)
	}
	return api.Errorf(api.CodeInternal, "%s of %s failed without a reason", op.Verb, op.Target)
}

// waitQuietly waits a moment for the end alone.
func (c *Client) waitQuietly(ctx context.Context, op *api.Operation) (*api.Operation, error) {
	if op.Finished() {
		return op, nil
	}
	short, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	now, err := c.poll(short, op.ID, math.MaxInt64)
	switch {
	case err == nil:
		return now, nil
	case ctx.Err() != nil:
		return op, ctx.Err()
	case short.Err() != nil, api.IsCode(err, api.CodeUnavailable):
		return op, nil
	}
	return op, err
}

// nextChange waits until op is other than it was.
func (c *Client) nextChange(ctx context.Context, op *api.Operation) (*api.Operation, error) {
	lost := time.Time{}
	pause := 50 * time.Millisecond
	for {
		now, err := c.poll(ctx, op.ID, op.Changes)
		if err == nil {
			return now, nil
		}
		if !api.IsCode(err, api.CodeUnavailable) {
			return op, err
		}
		if lost.IsZero() {
			lost = time.Now()
		}
		if time.Since(lost) > patience {
			return op, err
		}
		// Nothing can tell us when the daemon is back.
		if err := sleep(ctx, pause); err != nil {
			return op, err
		}
		pause = min(2*pause, time.Second)
	}
}

func (c *Client) poll(ctx context.Context, id string, changes int64) (*api.Operation, error) {
	q := url.Values{
		"wait":    {strconv.Itoa(int(poll / time.Second))},
		"changes": {strconv.FormatInt(changes, 10)},
	}
	op, err := do[api.Operation](ctx, c, request{method: http.MethodGet, path: name("operations", id), query: q})
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		err = ctx.Err()
	}
	return op, err
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
