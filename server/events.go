package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
)

type watchEvents struct {
	Project     string `query:"project" doc:"Only events of this project and of the host; * or nothing for all"`
	Since       string `query:"since" doc:"Begin after this id, at this time (RFC 3339), or this long ago (like 10m); now if left out" example:"10m"`
	LastEventID string `header:"Last-Event-ID" doc:"Begin after this id; goes before since"`
	Follow      bool   `query:"follow" default:"true" doc:"Go on with what happens; else end after what has happened"`
}

// stream is an answer that is written by hand.
type stream struct {
	Body func(huma.Context)
}

func (s *Server) eventRoutes() {
	op := route("operations", "watch-events", http.MethodGet, "/v1/events", "Watch what happens")
	op.Description = "Server-sent events (WHATWG HTML §9.2): id is the event's, data is the event as JSON. Ids grow and are never reused; a client that was cut off goes on with Last-Event-ID. Comments come while nothing happens."
	op.Responses = map[string]*huma.Response{"200": {Description: "The events", Content: map[string]*huma.MediaType{
		"text/event-stream": {Schema: schemaOf[api.Event](s)},
	}}}
	handle(s, op, s.watchEvents)
}

func (s *Server) watchEvents(_ context.Context, in *watchEvents) (*stream, error) {
	since, err := parseSince(in, time.Now())
	if err != nil {
		return nil, err
	}
	return &stream{Body: func(hc huma.Context) {
		r, w := unwrap(hc)
		s.sendEvents(r, w, since, in.Project)
	}}, nil
}

func parseSince(in *watchEvents, now time.Time) (control.Since, error) {
	since := control.Since{Follow: in.Follow}
	text, field := in.LastEventID, "Last-Event-ID"
	if text == "" {
		text, field = in.Since, "since"
	}
	if text == "" {
		return since, nil
	}
	if id, err := strconv.ParseInt(text, 10, 64); err == nil && id >= 0 {
		since.ID = id
		return since, nil
	}
	if field == "since" {
		if t, ok := parseTime(text, now); ok {
			since.Time = t
			return since, nil
		}
	}
	return since, api.Errorf(api.CodeInvalid, "%q is no place to begin", text).WithField(field).
		WithHint("give an event's id, a time like 2026-01-02T15:04:05Z, or a duration like 10m")
}

// parseTime reads a time (RFC 3339), or a duration before now.
func parseTime(text string, now time.Time) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, true
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), true
	}
	return time.Time{}, false
}

// sendEvents writes events as they come and a comment while none does.
func (s *Server) sendEvents(r *http.Request, w http.ResponseWriter, since control.Since, project string) {
	ctx, cancel := untilStop(r.Context())
	defer cancel()
	lines, failed := make(chan []byte), make(chan error, 1)
	go func() {
		defer close(failed)
		failed <- s.backend.Events(ctx, since, func(e api.Event) error {
			if project != "" && project != allProjects && e.Project != "" && e.Project != project {
				return nil
			}
			data, err := json.Marshal(e)
			if err != nil {
				return err
			}
			select {
			case lines <- fmt.Appendf(nil, "id: %d\ndata: %s\n\n", e.ID, data):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	// The source has ended before this returns, so that it never outlives
	// the request.
	defer func() {
		cancel()
		for range failed {
		}
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	out := s.newTextStream(w)
	defer out.done()
	beat := time.NewTicker(s.heartbeat)
	defer beat.Stop()
	err := out.send([]byte("retry: 1000\n\n"))
	for err == nil {
		select {
		case line := <-lines:
			err = out.send(line)
		case <-beat.C:
			err = out.send([]byte(":\n\n"))
		case err = <-failed:
			if err != nil && ctx.Err() == nil {
				s.aborted("events", err)
			}
			return
		}
	}
}

// textStream writes pieces of text. A client that takes nothing for a while
// counts as gone.
type textStream struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
}

func (s *Server) newTextStream(w http.ResponseWriter) *textStream {
	return &textStream{w: w, rc: http.NewResponseController(w), timeout: s.write}
}

func (t *textStream) write(p []byte) error {
	_ = t.rc.SetWriteDeadline(time.Now().Add(t.timeout))
	_, err := t.w.Write(p)
	return err
}

func (t *textStream) send(p []byte) error {
	if err := t.write(p); err != nil {
		return err
	}
	return t.rc.Flush()
}

// done takes the deadline back, as the connection may live on.
func (t *textStream) done() { _ = t.rc.SetWriteDeadline(time.Time{}) }
