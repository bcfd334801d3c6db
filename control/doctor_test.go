package control

import (
	"context"
	"slices"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// ownWords is an engine that calls its area by its own name.
type ownWords struct{ *fakeEngine }

func (e ownWords) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	caps, _ := e.fakeEngine.Probe(ctx)
	return caps, []api.Finding{{Area: "uml", Name: "tracing", State: "ok"}}
}

func TestDoctorTellsOfEachAreaOnce(t *testing.T) {
	w := newWorld(t, newVM(), ownWords{newPVM()})
	var areas []string
	for _, f := range w.c.Doctor(t.Context()) {
		if len(areas) == 0 || areas[len(areas)-1] != f.Area {
			areas = append(areas, f.Area)
		}
	}
	for i, a := range areas {
		if slices.Contains(areas[:i], a) || a == "uml" {
			t.Errorf("%s is told of twice, or under a name of its own: %q", a, areas)
		}
	}
}
