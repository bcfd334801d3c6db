package choice

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// fake is an engine that notes what is asked of it.
type fake struct {
	engine.Engine // nil: what isn't here is not asked
	name          string
	caps          engine.Capabilities
	fits          error
	startErr      error
	guests        []engine.Guest
	exits         chan engine.Exit
	asked         []string
}

func newFake(name string) *fake {
	return &fake{name: name, caps: engine.Capabilities{Available: true}, exits: make(chan engine.Exit)}
}

func (f *fake) note(what string) { f.asked = append(f.asked, what) }

func (f *fake) Name() string   { return f.name }
func (f *fake) Kind() api.Kind { return api.KindVM }
func (f *fake) Probe(context.Context) (engine.Capabilities, []api.Finding) {
	return f.caps, []api.Finding{{Name: f.name}}
}
func (f *fake) Fits(context.Context, *engine.Spec) error        { return f.fits }
func (f *fake) SetKeeper(context.Context, *keeper.Client) error { f.note("keeper"); return nil }
func (f *fake) Destroy()                                        { f.note("destroy") }
func (f *fake) List(context.Context) ([]engine.Guest, error)    { return f.guests, nil }
func (f *fake) Exits() <-chan engine.Exit                       { return f.exits }
func (f *fake) Clean(_ context.Context, id string) error        { f.note("clean " + id); return nil }

func (f *fake) Forget(_ context.Context, id string) error { f.note("forget " + id); return nil }

func (f *fake) Pause(_ context.Context, id string) error { f.note("pause " + id); return nil }

func (f *fake) Agent(_ context.Context, _ string) (net.Conn, error) { return nil, errors.New(f.name) }

func (f *fake) Start(_ context.Context, s *engine.Spec) (*engine.Guest, error) {
	f.note("start " + s.ID)
	return &engine.Guest{ID: s.ID}, f.startErr
}

func (f *fake) Close() error {
	close(f.exits)
	return nil
}

// saver is one that can keep memory too.
type saver struct{ *fake }

func (s saver) Save(_ context.Context, id, _ string) error { s.note("save " + id); return nil }

func open(t *testing.T, last Member, preferred ...Picky) *Engine {
	t.Helper()
	e, err := New(t.Context(), last, preferred...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func spec(id, asked string) *engine.Spec {
	return &engine.Spec{ID: id, Name: id, Machine: &engine.Machine{Engine: asked}}
}

func TestGuestIsStartedByTheFirstThatItFits(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	e := open(t, all, small)
	defer e.Close()
	small.fits = errors.New("too large")
	for _, c := range []struct {
		id, asked, want string
		fits            error
	}{
		{"a", "", "small", nil},
		{"b", "", "all", errors.New("too large")},
		{"c", "all", "all", nil},
		{"d", "small", "small", nil},
	} {
		small.fits = c.fits
		g, err := e.Start(t.Context(), spec(c.id, c.asked))
		if err != nil || g.Engine != c.want {
			t.Errorf("%s: %+v, %v, want %s", c.id, g, err, c.want)
		}
		if _, err := e.Agent(t.Context(), c.id); err == nil || err.Error() != c.want {
			t.Errorf("%s is looked for at %v", c.id, err)
		}
	}
	if diff := cmp.Diff([]string{"start a", "clean b", "clean c", "start d"}, small.asked); diff != "" {
		t.Error(diff)
	}
}

func TestAskedEngineThatDoesNotFitIsRefused(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	e := open(t, all, small)
	defer e.Close()
	small.fits = errors.New("too large")
	if _, err := e.Start(t.Context(), spec("a", "small")); !errors.Is(err, small.fits) {
		t.Errorf("error %v", err)
	}
	if _, err := e.Start(t.Context(), spec("a", "third")); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("error %v", err)
	}
	if len(small.asked)+len(all.asked) > 0 {
		t.Errorf("asked %q and %q", small.asked, all.asked)
	}
}

func TestGuestsOfAnEarlierDaemonAreKnown(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	small.guests = []engine.Guest{{ID: "a", Running: true}}
	all.guests = []engine.Guest{{ID: "b", Running: true}}
	e := open(t, all, small)
	defer e.Close()
	list, err := e.List(t.Context())
	want := []engine.Guest{{ID: "a", Running: true, Engine: "small"}, {ID: "b", Running: true, Engine: "all"}}
	if diff := cmp.Diff(want, list); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, id := range []string{"a", "b", "unknown"} {
		if err := e.Pause(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff([][]string{{"pause a"}, {"pause b", "pause unknown"}}, [][]string{small.asked, all.asked}); diff != "" {
		t.Error(diff)
	}
}

func TestCleanAsksEveryoneSinceAStartMayHaveBeenCutShort(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	e := open(t, all, small)
	defer e.Close()
	if err := errors.Join(e.Clean(t.Context(), "a"), e.Forget(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	want := []string{"clean a", "forget a"}
	if diff := cmp.Diff([][]string{want, want}, [][]string{small.asked, all.asked}); diff != "" {
		t.Error(diff)
	}
}

func TestWhatOnlyOneCanIsRefusedByTheOther(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	e := open(t, saver{all}, small)
	defer e.Close()
	for id, asked := range map[string]string{"a": "small", "b": "all"} {
		if _, err := e.Start(t.Context(), spec(id, asked)); err != nil {
			t.Fatal(err)
		}
	}
	err := e.Save(t.Context(), "a", "/x")
	if !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(api.AsError(err).Hint, "--engine all") {
		t.Errorf("error %v, hint %q", err, api.AsError(err).Hint)
	}
	if err := e.Save(t.Context(), "b", "/x"); err != nil {
		t.Error(err)
	}
	if _, err := e.VNC(t.Context(), "b"); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("error %v", err)
	}
}

func TestExitsOfAllAreDelivered(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	e := open(t, all, small)
	seen := map[string]bool{}
	go func() {
		small.exits <- engine.Exit{ID: "a"}
		all.exits <- engine.Exit{ID: "b"}
	}()
	for range 2 {
		seen[(<-e.Exits()).ID] = true
	}
	if !seen["a"] || !seen["b"] {
		t.Errorf("exits %v", seen)
	}
	small.exits <- engine.Exit{ID: "nobody takes it"}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-e.Exits(); open {
		t.Error("exits go on after the end")
	}
}

func TestProbeIsThatOfWhoTakesAll(t *testing.T) {
	small, all := newFake("small"), newFake("all")
	all.caps.MaxCPUs, small.caps.MaxCPUs = 7, 2
	e := open(t, all, small)
	defer e.Close()
	caps, findings := e.Probe(t.Context())
	if caps.MaxCPUs != 7 || len(findings) != 2 || e.Name() != "small, all" {
		t.Errorf("%s: %+v, %v", e.Name(), caps, findings)
	}
	all.caps.Available = false
	if caps, _ = e.Probe(t.Context()); caps.MaxCPUs != 2 || !caps.Available || e.Name() != "small" {
		t.Errorf("%s: %+v", e.Name(), caps)
	}
	small.caps.Available = false
	if caps, _ = e.Probe(t.Context()); caps.MaxCPUs != 7 || e.Name() != "all" {
		t.Errorf("%s: %+v", e.Name(), caps)
	}
}
