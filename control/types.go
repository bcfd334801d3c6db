package control

import (
	"context"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// Query selects instances.
type Query struct {
	Labels      map[string]string
	Phase       api.Phase
	Prefix      string // of the name
	Cursor      string // Next of the page before
	Limit       int    // 0: all
	AllProjects bool
}

// PowerRequest asks for a change of power.
type PowerRequest struct {
	Action         string // start, stop, restart, pause, resume
	Force          bool   // SIGKILL at once
	TimeoutSeconds *int   // between the stop signal and SIGKILL; the instance's own if nil
	Save           bool   // stop: keep the memory, for the next start to go on from
	Fresh          bool   // start: without the memory that was saved
}

// ConsoleOptions choose what Console attaches.
type ConsoleOptions struct {
	engine.ConsoleOptions
	// Start attaches first and then starts, so that nothing is missed.
	Start bool
}

// Since says where a stream of events begins: after ID, or at Time, or now
// when both are zero.
type Since struct {
	ID     int64
	Time   time.Time
	Follow bool
}

type idempotencyKey struct{}

// WithIdempotencyKey marks the mutating call made with ctx: a second one with
// the same key answers the first one's operation and does nothing.
func WithIdempotencyKey(ctx context.Context, key string) context.Context {
	return context.WithValue(ctx, idempotencyKey{}, key)
}
