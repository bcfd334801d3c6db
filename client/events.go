package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
)

// EventOptions say which events are wanted.
type EventOptions struct {
	// Since begins the stream in the past: an id (events after it), a time
	// (RFC 3339) or an age (a duration like 1h30m). Empty begins now.
	Since string
	// NoFollow ends the stream after the past events.
	NoFollow bool
	// AllProjects includes the events of every project.
	AllProjects bool
}

// maxEvent bounds one line of the event stream.
const maxEvent = 1 << 20

// Events streams events. A stream that breaks off is taken up again after
// the last event seen, without end while ctx lives; only the first
// connection's failure is an error.
func (c *Client) Events(ctx context.Context, o EventOptions) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		last, connected, pause := int64(0), false, 100*time.Millisecond
		for {
			resp, err := c.openEvents(ctx, o, last)
			switch {
			case err == nil:
				connected, pause = true, 100*time.Millisecond
				more := readEvents(resp.Body, func(e api.Event) bool {
					last = e.ID
					return yield(e, nil)
				})
				resp.Body.Close()
				if !more || o.NoFollow {
					return
				}
			case !connected || !api.IsCode(err, api.CodeUnavailable):
				yield(api.Event{}, err)
				return
			}
			// Nothing can tell us when the daemon is back.
			if err := sleep(ctx, pause); err != nil {
				yield(api.Event{}, err)
				return
			}
			pause = min(2*pause, 2*time.Second)
		}
	}
}

func (c *Client) openEvents(ctx context.Context, o EventOptions, last int64) (*http.Response, error) {
	r := get("/events")
	r.query = url.Values{}
	if o.NoFollow {
		r.query.Set("follow", "false")
	}
	if o.AllProjects {
		r.query.Set("project", "*")
	}
	switch {
	case last != 0:
		r.lastID = strconv.FormatInt(last, 10)
	case o.Since != "":
		r.query.Set("since", o.Since)
	}
	return c.open(ctx, r)
}

// readEvents parses server-sent events (WHATWG HTML §9.2.6) and tells
// whether the receiver wants more.
func readEvents(r io.Reader, yield func(api.Event) bool) bool {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxEvent)
	var data strings.Builder
	for sc.Scan() {
		line := sc.Text()
		if v, ok := strings.CutPrefix(line, "data:"); ok {
			if data.Len() > 0 {
				data.WriteByte('\n')
			}
			data.WriteString(strings.TrimPrefix(v, " "))
			continue
		}
		if line != "" || data.Len() == 0 {
			continue // id and type are in the data too; comments keep the line open
		}
		var e api.Event
		if json.Unmarshal([]byte(data.String()), &e) == nil && e.ID != 0 && !yield(e) {
			return false
		}
		data.Reset()
	}
	return true
}
