package control

import (
	"context"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// kinds are all walls, the thinnest first.
var kinds = []api.Kind{api.KindContainer, api.KindPVM, api.KindVM}

// wall is what an engine said that it can do on this host. It is asked once,
// and again while it can't do anything: what it lacks may be installed
// meanwhile.
type wall struct {
	engine.Engine
	mu       sync.Mutex
	caps     engine.Capabilities
	findings []api.Finding
}

// look returns what the engine can do; anew asks it in any case.
func (w *wall) look(ctx context.Context, anew bool) (engine.Capabilities, []api.Finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if anew || !w.caps.Available {
		w.caps, w.findings = w.Probe(ctx)
	}
	return w.caps, w.findings
}

// engineFor finds the engine of a kind, for guests that it has already.
func (c *Controller) engineFor(kind api.Kind) (engine.Engine, error) {
	w, err := c.wallOf(kind)
	if err != nil {
		return nil, err
	}
	return w.Engine, nil
}

func (c *Controller) wallOf(kind api.Kind) (*wall, error) {
	if kind == "" {
		kind = api.KindContainer
	}
	if w := c.walls[kind]; w != nil {
		return w, nil
	}
	return nil, api.Errorf(api.CodeUnsupported, "this daemon has no engine for kind %q", kind).WithField("spec.kind").
		WithHint("%s", c.kindsHere(c.ctx))
}

// usable finds what the engine of a kind can do, or says why it can't do
// anything here.
func (c *Controller) usable(ctx context.Context, kind api.Kind) (*wall, engine.Capabilities, error) {
	w, err := c.wallOf(kind)
	if err != nil {
		return nil, engine.Capabilities{}, err
	}
	caps, _ := w.look(ctx, false)
	if caps.Available {
		return w, caps, nil
	}
	why, remedy := "its engine does not say why", ""
	if caps.Reason != nil {
		why, remedy = caps.Reason.Message, caps.Reason.Hint
	}
	hint := c.kindsHere(ctx)
	if remedy != "" {
		hint = remedy + "; " + hint
	}
	return nil, caps, api.Errorf(api.CodeUnsupported, "kind %q is not possible on this host: %s", w.Kind(), why).WithField("spec.kind").WithHint("%s", hint)
}

// having lists the kinds of this host that can do something.
func (c *Controller) having(ctx context.Context, can func(engine.Capabilities) bool) []string {
	var have []string
	for _, k := range kinds {
		if w := c.walls[k]; w != nil {
			if caps, _ := w.look(ctx, false); caps.Available && can(caps) {
				have = append(have, string(k))
			}
		}
	}
	return have
}

func (c *Controller) kindsHere(ctx context.Context) string {
	have := c.having(ctx, func(engine.Capabilities) bool { return true })
	if len(have) == 0 {
		return "no kind is possible here; `cleave doctor` says what would change that"
	}
	return "kinds possible here: " + strings.Join(have, ", ")
}

func (c *Controller) kindsThat(ctx context.Context, can func(engine.Capabilities) bool) string {
	have := c.having(ctx, can)
	if len(have) == 0 {
		return "no kind on this host has it; `cleave doctor` says what there is"
	}
	return "kinds of this host that have it: " + strings.Join(have, ", ")
}
