package control

import (
	"io"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestExportAndStartExcludeEachOther(t *testing.T) {
	var e exports
	for range 2 {
		if !e.read("a") {
			t.Error("readers don't share")
		}
	}
	if e.start("a") || !e.start("b") || e.read("b") {
		t.Error("starts aren't alone")
	}
	e.done("a")
	if e.start("a") {
		t.Error("one reader is left")
	}
	e.done("a")
	e.done("b")
	if !e.start("a") || !e.read("b") || len(e.by) != 2 {
		t.Errorf("what is done holds on: %v", e.by)
	}
}

func TestExportRefusesWhatHasNoDiskOfItsOwn(t *testing.T) {
	w := newWorld(t)
	in := &api.Instance{Meta: api.Meta{Name: "web"}, Spec: spec()}
	op, err := w.c.CreateInstance(t.Context(), in, true)
	w.finish(op, err)
	if err := w.c.ExportInstance(t.Context(), "", "web", "", io.Discard); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("got %v", err)
	}
	if err := w.c.ExportInstance(t.Context(), "", "nobody", "", io.Discard); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("got %v", err)
	}
}
