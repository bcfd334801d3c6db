package server

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
)

// DefaultGroup is the unix group whose members may call beside root.
const DefaultGroup = "cleave"

const (
	maxJSON   = 1 << 20  // bytes of a JSON body
	maxHeader = 64 << 10 // bytes of all request headers
)

// timeouts bound what a slow client can hold up; tests shorten them. Nothing
// bounds a stream as a whole.
type timeouts struct {
	header    time.Duration // for all request headers to come
	body      time.Duration // the same for a JSON body
	idle      time.Duration // of a kept-alive connection between requests
	write     time.Duration // for a reader of events or logs to take a piece
	drain     time.Duration // for requests to end when the server stops
	heartbeat time.Duration // between signs of life on an idle stream
	begin     time.Duration // for a guest to begin a command
}

var defaultTimeouts = timeouts{
	header: 10 * time.Second, body: 30 * time.Second, idle: 2 * time.Minute,
	write: time.Minute, drain: 5 * time.Second, heartbeat: 15 * time.Second, begin: 30 * time.Second,
}

// Options configure a Server.
type Options struct {
	Backend Backend
	Version string
	// Group is the unix group allowed beside root; DefaultGroup if empty.
	// It is looked up at each connection, so it may be made later.
	Group string
	// Log gets failures, and each request at debug level; slog.Default if nil.
	Log *slog.Logger
	// Metrics adds to what /metrics shows; may be nil.
	Metrics prometheus.Gatherer
	// Health tells the state of each subsystem by name, nil being good; may
	// be nil. It must answer quickly.
	Health func(ctx context.Context) map[string]error
}

// Access says how callers on a listener are known. The zero value asks for a
// bearer token.
type Access struct {
	// Peer trusts the peer credentials of a unix socket.
	Peer bool
}

// Server serves one backend on any number of listeners.
type Server struct {
	backend Backend
	version string
	group   string
	log     *slog.Logger
	health  func(ctx context.Context) map[string]error

	api     huma.API
	mux     *http.ServeMux
	metrics *metrics
	tickets *tickets
	timeouts
}

// New makes a server with all its routes.
func New(o Options) *Server { return newServer(o, defaultTimeouts) }

func newServer(o Options, t timeouts) *Server {
	log := o.Log
	if log == nil {
		log = slog.Default()
	}
	s := &Server{
		backend: o.Backend, version: cmp.Or(o.Version, "dev"), group: cmp.Or(o.Group, DefaultGroup), log: log, health: o.Health,
		mux: http.NewServeMux(), tickets: newTickets(), timeouts: t,
	}
	s.metrics = newMetrics(s.backend, o.Metrics)
	s.api = humago.New(s.mux, apiConfig(s.version))
	s.routes()
	return s
}

// OpenAPI is the document that is served at /openapi.json.
func (s *Server) OpenAPI() *huma.OpenAPI { return s.api.OpenAPI() }

// Serve answers requests on l until ctx ends or l fails, and closes l. It
// returns nil after ctx ended, once no request is left.
func (s *Server) Serve(ctx context.Context, l net.Listener, access Access) error {
	var running sync.WaitGroup // requests, also those whose connection was taken over
	srv := &http.Server{
		Handler:           s.handler(access, &running),
		ReadHeaderTimeout: s.header,
		IdleTimeout:       s.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(context.WithoutCancel(ctx), stopKey{}, ctx)
		},
		ConnContext: func(connCtx context.Context, c net.Conn) context.Context {
			return s.identify(connCtx, c, access)
		},
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		drain, cancel := context.WithTimeout(context.Background(), s.drain)
		defer cancel()
		if err := srv.Shutdown(drain); err != nil {
			s.log.Warn("requests were cut off at shutdown", "error", err)
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() {
		_ = srv.Close()
		return err
	}
	<-stopped
	running.Wait()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// stopKey finds the context of Serve in that of a request.
type stopKey struct{}

// untilStop returns a context that also ends when the server begins to stop:
// what streams and long polls live by.
func untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	serve, ok := ctx.Value(stopKey{}).(context.Context)
	if !ok {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	detach := context.AfterFunc(serve, cancel)
	return ctx, func() { detach(); cancel() }
}
