// Package choice makes one engine of several that build walls of the same
// kind. Each guest is started by the one that it asks for, else by the first
// that it fits, and stays with that one until it is started anew.
//
// Members share the directory of a guest's logs, and have runtime directories
// of their own.
package choice

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// Member is an engine that can be one of several.
type Member interface {
	engine.Engine
	SetKeeper(ctx context.Context, k *keeper.Client) error
	Destroy()
}

// Picky is a Member that doesn't take every guest. Whoever is last takes what
// the others leave.
type Picky interface {
	Member
	// Fits is nil for a guest that it can run on this host, else why not.
	Fits(ctx context.Context, spec *engine.Spec) error
}

// Engine is several engines. It implements every optional interface of
// package engine: what a guest's own engine can't do has the code
// "unsupported".
type Engine struct {
	members []Member
	exits   chan engine.Exit

	mu     sync.Mutex
	chosen map[string]Member // by guest
	able   []string          // who can run guests here, as the last Probe found
}

var (
	_ engine.Engine    = (*Engine)(nil)
	_ engine.Display   = (*Engine)(nil)
	_ engine.Plugger   = (*Engine)(nil)
	_ engine.Booter    = (*Engine)(nil)
	_ engine.Saver     = (*Engine)(nil)
	_ engine.Tracker   = (*Engine)(nil)
	_ engine.Inspector = (*Engine)(nil)
)

// New puts engines of one kind together, the preferred ones first. It takes
// them over.
func New(ctx context.Context, last Member, preferred ...Picky) (*Engine, error) {
	e := &Engine{exits: make(chan engine.Exit), chosen: map[string]Member{}}
	for _, p := range preferred {
		e.members = append(e.members, p)
	}
	e.members = append(e.members, last)
	if _, err := e.List(ctx); err != nil {
		return nil, errors.Join(err, e.closeMembers())
	}
	var open sync.WaitGroup
	for _, m := range e.members {
		open.Go(func() {
			for x := range m.Exits() {
				e.exits <- x
			}
		})
	}
	go func() {
		open.Wait()
		close(e.exits)
	}()
	return e, nil
}

func (e *Engine) last() Member { return e.members[len(e.members)-1] }

// preferred are the others.
func (e *Engine) preferred() []Picky {
	var list []Picky
	for _, m := range e.members[:len(e.members)-1] {
		list = append(list, m.(Picky))
	}
	return list
}

// of is the engine of a guest; the last one for a guest that there isn't, of
// which it knows to say so.
func (e *Engine) of(id string) Member {
	e.mu.Lock()
	defer e.mu.Unlock()
	if m := e.chosen[id]; m != nil {
		return m
	}
	return e.last()
}

func (e *Engine) choose(id string, m Member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.chosen[id] = m
}

// Name implements engine.Engine: those that can run guests on this host, the
// preferred ones first.
func (e *Engine) Name() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.able) == 0 {
		return e.last().Name()
	}
	return strings.Join(e.able, ", ")
}

// Kind implements engine.Engine.
func (e *Engine) Kind() api.Kind { return e.last().Kind() }

// Probe implements engine.Engine: what the last one can do, which takes what
// the others leave. Where it can do nothing, the first of the others that can
// counts. All add findings.
func (e *Engine) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	caps, findings := e.last().Probe(ctx)
	lastCan, able := caps.Available, []string(nil)
	for _, p := range e.preferred() {
		c, more := p.Probe(ctx)
		if findings = append(findings, more...); !c.Available {
			continue
		}
		if able = append(able, p.Name()); !caps.Available {
			caps = c
		}
	}
	if lastCan {
		able = append(able, e.last().Name())
	}
	e.mu.Lock()
	e.able = able
	e.mu.Unlock()
	return caps, findings
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, spec *engine.Spec) (*engine.Guest, error) {
	pick, err := e.pick(ctx, spec)
	if err != nil {
		return nil, err
	}
	// What a daemon that died has left of another engine's start.
	for _, m := range e.members {
		if m != pick {
			if err := m.Clean(ctx, spec.ID); err != nil {
				return nil, err
			}
		}
	}
	e.choose(spec.ID, pick)
	g, err := pick.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	g.Engine = pick.Name()
	return g, nil
}

// pick is the engine for a guest: the one that is asked for, else the first
// that it fits.
func (e *Engine) pick(ctx context.Context, spec *engine.Spec) (Member, error) {
	asked := ""
	if spec.Machine != nil {
		asked = spec.Machine.Engine
	}
	for _, p := range e.preferred() {
		switch asked {
		case "":
			if p.Fits(ctx, spec) == nil {
				return p, nil
			}
		case p.Name():
			return p, p.Fits(ctx, spec)
		}
	}
	if last := e.last(); asked == "" || asked == last.Name() {
		return last, nil
	}
	return nil, api.Errorf(api.CodeUnsupported, "start %s: guests of kind %s have no engine %q", spec.Name, e.Kind(), asked).
		WithField("spec.machine.engine")
}

// List implements engine.Engine.
func (e *Engine) List(ctx context.Context) ([]engine.Guest, error) {
	var all []engine.Guest
	for _, m := range e.members {
		list, err := m.List(ctx)
		if err != nil {
			return nil, err
		}
		for i := range list {
			e.choose(list[i].ID, m)
			list[i].Engine = m.Name()
		}
		all = append(all, list...)
	}
	return all, nil
}

// Exits implements engine.Engine.
func (e *Engine) Exits() <-chan engine.Exit { return e.exits }

// Clean implements engine.Engine. Every member has a look: a start that was
// cut short is in no list.
func (e *Engine) Clean(ctx context.Context, id string) error {
	var errs []error
	for _, m := range e.members {
		errs = append(errs, m.Clean(ctx, id))
	}
	return errors.Join(errs...)
}

// Forget implements engine.Engine.
func (e *Engine) Forget(ctx context.Context, id string) error {
	var errs []error
	for _, m := range e.members {
		errs = append(errs, m.Forget(ctx, id))
	}
	err := errors.Join(errs...)
	if err == nil {
		e.mu.Lock()
		delete(e.chosen, id)
		e.mu.Unlock()
	}
	return err
}

// SetKeeper hands every member's guests to another keeper. One's trouble
// doesn't keep the others from theirs.
func (e *Engine) SetKeeper(ctx context.Context, k *keeper.Client) error {
	var errs []error
	for _, m := range e.members {
		errs = append(errs, m.SetKeeper(ctx, k))
	}
	return errors.Join(errs...)
}

// Destroy removes what the members keep on the host beside guests.
func (e *Engine) Destroy() {
	for _, m := range e.members {
		m.Destroy()
	}
}

// Close implements engine.Engine. Exits that nobody takes are dropped.
func (e *Engine) Close() error {
	err := e.closeMembers()
	for range e.exits {
		continue // until it is closed
	}
	return err
}

func (e *Engine) closeMembers() error {
	var errs []error
	for _, m := range e.members {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
