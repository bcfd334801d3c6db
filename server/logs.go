package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/keeper"
)

type readLogs struct {
	InstanceName
	Follow bool   `query:"follow" doc:"Go on until the guest ends"`
	Since  string `query:"since" doc:"Begin at this time (RFC 3339), or this long ago (like 10m)" example:"10m"`
	Tail   int    `query:"tail" default:"-1" minimum:"-1" doc:"Begin with the last lines; all if -1"`
}

// logQueue is how many lines may wait to be sent: what is there is sent
// before the answer is flushed, so that a long log goes out in large pieces
// and a single line at once.
const logQueue = 256

func (s *Server) logRoutes() {
	op := route("guests", "read-logs", http.MethodGet, "/v1/instances/{name}/logs", "Read what a guest's entry point wrote")
	op.Description = "One JSON object a line. The data of all entries of a stream, put together, is what the guest wrote. If reading fails on the way the last line is {\"error\":{...}}."
	op.Responses = map[string]*huma.Response{"200": {Description: "The log", Content: map[string]*huma.MediaType{
		"application/x-ndjson": {Schema: schemaOf[keeper.LogEntry](s)},
	}}}
	handle(s, op, s.readLogs)
}

func (s *Server) readLogs(_ context.Context, in *readLogs) (*stream, error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	opts, err := logOptions(in, time.Now())
	if err != nil {
		return nil, err
	}
	// That the instance isn't there is worth a status of its own.
	if _, err := s.backend.Instance(p, in.Name); err != nil {
		return nil, err
	}
	return &stream{Body: func(hc huma.Context) {
		r, w := unwrap(hc)
		s.sendLogs(r, w, p, in.Name, opts)
	}}, nil
}

func logOptions(in *readLogs, now time.Time) (keeper.LogOptions, error) {
	opts := keeper.LogOptions{Follow: in.Follow, Tail: max(in.Tail, 0)}
	if in.Since != "" {
		t, ok := parseTime(in.Since, now)
		if !ok {
			return opts, api.Errorf(api.CodeInvalid, "%q is neither a time nor a duration", in.Since).WithField("since").
				WithHint("write a time like 2026-01-02T15:04:05Z, or a duration like 10m")
		}
		opts.Since = t
	}
	if in.Tail == 0 && opts.Since.Before(now) {
		opts.Since = now // nothing of what is there
	}
	return opts, nil
}

func (s *Server) sendLogs(r *http.Request, w http.ResponseWriter, project, name string, opts keeper.LogOptions) {
	ctx, cancel := untilStop(r.Context())
	defer cancel()
	lines, failed := make(chan []byte, logQueue), make(chan error, 1)
	go func() {
		defer close(lines)
		failed <- s.backend.Logs(ctx, project, name, opts, func(e keeper.LogEntry) error {
			line, err := json.Marshal(e)
			if err != nil {
				return err
			}
			select {
			case lines <- append(line, '\n'):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	// The source has ended before this returns.
	defer func() {
		cancel()
		for range lines {
		}
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := s.newTextStream(w)
	defer out.done()
	err := out.send(nil) // the status, so that a follower knows that it follows
	for line := range lines {
		if err == nil {
			err = out.write(line)
		}
		if err == nil && len(lines) == 0 {
			err = out.rc.Flush()
		}
		if err != nil {
			return
		}
	}
	if err := <-failed; err != nil && ctx.Err() == nil {
		if line, encErr := json.Marshal(final{Error: problemOf(err).apiError()}); encErr == nil {
			_ = out.send(append(line, '\n'))
		}
		s.aborted("log of "+name, err)
	}
}
