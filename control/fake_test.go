package control

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// fakeEngine is an engine whose guests live in memory, to inject faults at
// every step. The real ones are tested in enginetest and e2e.
type fakeEngine struct {
	kind api.Kind
	caps engine.Capabilities

	mu     sync.Mutex
	guests map[string]*engine.Guest
	specs  map[string]*engine.Spec
	starts map[string]int
	at     map[string][]time.Time // of starts
	cleans map[string][]time.Time
	exits  chan engine.Exit
	polite map[string]bool // ends on its stop signal

	failStart, failUpdate, failClean, failSignal error
	limitMemory                                  api.Bytes // of a machine that runs
	onStart                                      func(*engine.Spec)
	consoles                                     bool // there are some, that can do nothing
}

func newFake() *fakeEngine {
	caps := engine.Capabilities{Available: true, Pause: true, WriteLimits: true, HostPath: true, Trees: true, Archs: []string{runtime.GOARCH}}
	return &fakeEngine{kind: api.KindContainer, caps: caps, guests: map[string]*engine.Guest{}, specs: map[string]*engine.Spec{}, starts: map[string]int{}, at: map[string][]time.Time{}, cleans: map[string][]time.Time{}, exits: make(chan engine.Exit, 100), polite: map[string]bool{}}
}

func (f *fakeEngine) Name() string   { return "fake" }
func (f *fakeEngine) Kind() api.Kind { return f.kind }

func (f *fakeEngine) Probe(context.Context) (engine.Capabilities, []api.Finding) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.caps, nil
}

func (f *fakeEngine) Start(ctx context.Context, s *engine.Spec) (*engine.Guest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts[s.ID]++
	f.at[s.ID] = append(f.at[s.ID], time.Now())
	if f.failStart != nil {
		return nil, f.failStart
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g := &engine.Guest{ID: s.ID, PID: 1000 + f.starts[s.ID], Started: time.Now(), Running: true}
	f.guests[s.ID], f.specs[s.ID] = g, s
	if f.onStart != nil {
		f.onStart(s)
	}
	c := *g
	return &c, nil
}

// end has a guest end by itself.
func (f *fakeEngine) end(id string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finish(id, api.ExitStatus{Code: code})
}

func (f *fakeEngine) finish(id string, x api.ExitStatus) {
	g := f.guests[id]
	if g == nil || !g.Running {
		return
	}
	g.Running, g.Exit, g.Ended = false, &x, time.Now()
	f.exits <- engine.Exit{ID: id, Status: x, Time: g.Ended}
}

func (f *fakeEngine) Signal(_ context.Context, id, signal string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.failSignal != nil:
		return f.failSignal
	case signal == "SIGKILL":
		f.finish(id, api.ExitStatus{Code: 137, Signal: "SIGKILL"})
	case f.polite[id]:
		f.finish(id, api.ExitStatus{Code: 143, Signal: signal})
	}
	return nil
}

func (f *fakeEngine) Pause(context.Context, string) error  { return nil }
func (f *fakeEngine) Resume(context.Context, string) error { return nil }

func (f *fakeEngine) Update(_ context.Context, id string, r api.Resources, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failUpdate != nil {
		return f.failUpdate
	}
	if f.limitMemory > 0 && r.Memory > f.limitMemory {
		return api.Errorf(api.CodeConflict, "it was started with %s of memory", f.limitMemory).WithField("spec.resources.memory")
	}
	f.specs[id].Resources = r
	return nil
}

func (f *fakeEngine) Stats(context.Context, string) (api.Stats, error) { return api.Stats{}, nil }

func (f *fakeEngine) Agent(context.Context, string) (net.Conn, error) {
	return nil, api.Errorf(api.CodeUnavailable, "no agent in a fake")
}

func (f *fakeEngine) Console(_ context.Context, id string, _ engine.ConsoleOptions) (engine.Console, error) {
	if f.consoles {
		return brokenConsole{id: id}, nil
	}
	return nil, api.Errorf(api.CodeUnavailable, "no console in a fake")
}

// brokenConsole is one whose guest can't be asked for anything.
type brokenConsole struct {
	engine.Console
	id string
}

func (b brokenConsole) Resize(uint16, uint16) error {
	return fmt.Errorf("guest %s has no terminal", b.id)
}

func (b brokenConsole) Exit(context.Context) (api.ExitStatus, error) {
	return api.ExitStatus{}, fmt.Errorf("guest %s: its end is lost: %w", b.id, context.Canceled)
}

func (f *fakeEngine) LogDir(string) string { return "/nonexistent" }

func (f *fakeEngine) Clean(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cleans[id] = append(f.cleans[id], time.Now())
	if f.failClean != nil {
		return f.failClean
	}
	delete(f.guests, id)
	return nil
}

func (f *fakeEngine) Forget(context.Context, string) error { return nil }

func (f *fakeEngine) List(context.Context) ([]engine.Guest, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []engine.Guest
	for _, g := range f.guests {
		l = append(l, *g)
	}
	return l, nil
}

func (f *fakeEngine) Exits() <-chan engine.Exit { return f.exits }
func (f *fakeEngine) Close() error              { return nil }

// set changes the fake under a controller that uses it.
func (f *fakeEngine) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeEngine) count(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts[id]
}
