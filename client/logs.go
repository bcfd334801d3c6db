package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/url"
	"strconv"
	"time"

	"github.com/cleave-project/cleave/api"
)

// LogEntry is a piece of a guest's output; not always a whole line.
type LogEntry struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout or stderr
	Data   []byte    `json:"data"`
}

// LogOptions say which part of a log is wanted.
type LogOptions struct {
	Since  time.Time // zero: from the beginning of what is kept
	Tail   int       // lines; negative: all
	Follow bool      // go on until the guest ends
}

// Logs streams what a guest's entry point wrote.
func (c *Client) Logs(ctx context.Context, n string, o LogOptions) iter.Seq2[LogEntry, error] {
	q := url.Values{}
	if !o.Since.IsZero() {
		q.Set("since", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if o.Tail >= 0 {
		q.Set("tail", strconv.Itoa(o.Tail))
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	return func(yield func(LogEntry, error) bool) {
		r := get(name("instances", n) + "/logs")
		r.query = q
		resp, err := c.open(ctx, r)
		if err != nil {
			yield(LogEntry{}, err)
			return
		}
		defer resp.Body.Close()
		dec := json.NewDecoder(resp.Body)
		for {
			// The last line of a stream that failed half-way is the reason.
			var line struct {
				LogEntry
				Error *api.Error `json:"error"`
			}
			err := dec.Decode(&line)
			switch {
			case errors.Is(err, io.EOF):
				return
			case err != nil && ctx.Err() != nil:
				err = ctx.Err()
			case err != nil:
				err = api.Errorf(api.CodeUnavailable, "the log of %s broke off: %w", n, err)
			case line.Error != nil:
				err = line.Error
			}
			if !yield(line.LogEntry, err) || err != nil {
				return
			}
		}
	}
}
