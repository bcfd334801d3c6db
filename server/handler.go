package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
)

// call is what the layers of one request share.
type call struct {
	caller caller
	w      http.ResponseWriter
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		c = &call{}
	}
	return c
}

// handler is what stands before the routes: it counts and logs, checks where
// the request came from and who sends it.
func (s *Server) handler(access Access, running *sync.WaitGroup) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		begun := time.Now()
		rec := &recorder{ResponseWriter: w, status: http.StatusOK}
		_, pattern := s.mux.Handler(r)
		var who caller
		defer func() {
			abort := s.recovered(recover(), pattern, rec)
			s.metrics.observe(pattern, rec.status, time.Since(begun), rec.hijacked)
			s.accessLog(r, rec, who, time.Since(begun))
			if abort {
				panic(http.ErrAbortHandler)
			}
		}()
		if err := checkOrigin(r, access); err != nil {
			problemOf(err).write(rec)
			return
		}
		who, err := s.authenticate(r, pattern, access)
		if err != nil {
			if api.IsCode(err, api.CodeUnauthorized) {
				rec.Header().Set("WWW-Authenticate", `Bearer realm="cleave"`)
			}
			problemOf(err).write(rec)
			return
		}
		if pattern == "" {
			s.noRoute(rec, r)
			return
		}
		rec.Header().Set("Cache-Control", "no-store")
		rec.Header().Set("X-Content-Type-Options", "nosniff")
		ctx := context.WithValue(r.Context(), callKey{}, &call{caller: who, w: rec})
		s.mux.ServeHTTP(rec, r.WithContext(ctx))
	})
}

func (s *Server) accessLog(r *http.Request, rec *recorder, who caller, took time.Duration) {
	if !s.log.Enabled(r.Context(), slog.LevelDebug) {
		return
	}
	path := r.URL.Path
	if strings.HasPrefix(path, streamPrefix) {
		path = streamPrefix + "..." // the ticket is a secret
	}
	s.log.LogAttrs(r.Context(), slog.LevelDebug, "request", slog.String("method", r.Method), slog.String("path", path), slog.Int("status", rec.status),
		slog.Int64("bytes", rec.bytes), slog.Duration("took", took), slog.String("caller", who.String()))
}

// recovered answers for a handler that panicked, and tells whether the
// connection must be cut because an answer has begun.
func (s *Server) recovered(p any, pattern string, rec *recorder) (abort bool) {
	if p == nil || p == http.ErrAbortHandler {
		return p != nil
	}
	s.log.Error("request panicked", "route", pattern, "panic", p, "stack", string(debug.Stack()))
	if rec.wrote {
		return true
	}
	problemOf(api.Errorf(api.CodeInternal, "%s: a bug in the daemon: %v", pattern, p)).write(rec)
	return false
}

// noRoute answers like the mux does, as a problem.
func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	probe := &recorder{ResponseWriter: discard{http.Header{}}}
	s.mux.ServeHTTP(probe, r)
	e := api.Errorf(api.CodeNotFound, "there is no %s", r.URL.Path).WithHint("see /openapi.json for the routes")
	status := http.StatusNotFound
	if probe.status == http.StatusMethodNotAllowed {
		allow := probe.Header().Get("Allow")
		w.Header().Set("Allow", allow)
		e = api.Errorf(api.CodeInvalid, "%s can't be done to %s", r.Method, r.URL.Path).WithHint("it allows %s", allow)
		status = probe.status
	}
	withStatus(e, status).write(w)
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status   int
	bytes    int64
	wrote    bool
	hijacked bool
}

func (r *recorder) WriteHeader(status int) {
	if status >= http.StatusOK || status == http.StatusSwitchingProtocols {
		r.status, r.wrote = status, true
		r.hijacked = status == http.StatusSwitchingProtocols
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.wrote = true
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach what is below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// aborted ends a request whose answer has begun and can't be finished: the
// connection is cut, so that the client can't take it for complete.
func (s *Server) aborted(what string, err error) {
	s.log.Warn("answer cut off", "what", what, "error", err)
	panic(http.ErrAbortHandler)
}

func (c caller) String() string {
	switch c.kind {
	case callerUnix:
		return fmt.Sprintf("uid %d", c.uid)
	case callerToken:
		return "token " + c.name
	}
	return "nobody"
}
