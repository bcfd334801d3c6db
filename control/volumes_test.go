package control

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestDriversErrorsNameVolumesAsUsersDo(t *testing.T) {
	w := newWorld(t)
	v, err := w.c.CreateVolume(t.Context(), &api.Volume{Meta: api.Meta{Name: "data"}, Spec: api.VolumeSpec{Size: api.GiB}})
	if err != nil {
		t.Fatal(err)
	}
	w.pool.failResize = api.Errorf(api.CodeInUse, "resize volume %q: it can't shrink", namedVolume(v.ID)).WithHint("make a smaller one")
	_, err = w.c.PatchVolume(t.Context(), "", "data", 0, []byte(`{"spec":{"size":536870912}}`))
	if !api.IsCode(err, api.CodeInUse) || !strings.Contains(err.Error(), `volume "data": it can't shrink; make a smaller one`) {
		t.Error(err)
	}
}
