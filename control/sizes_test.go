package control

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestSizesAreSuchThatAPoolCouldHoldThem(t *testing.T) {
	w := newWorld(t)
	w.pool.total = 500 * api.GiB
	for name, tt := range map[string]struct {
		size api.Bytes
		disk bool
		code api.Code
		hint string
	}{
		"thin":                {4 * api.TiB, false, "", ""},
		"ten times":           {4 * api.TiB, true, "", ""},
		"more":                {4097 * api.GiB, false, api.CodeNoSpace, "at most 4TiB"},
		"absurd":              {900 * api.TiB, false, api.CodeNoSpace, "at most 4TiB"},
		"a disk is one file":  {16 * api.TiB, true, api.CodeInvalid, "more disks"},
		"absurd for any pool": {900 * api.TiB, true, api.CodeInvalid, "more disks"},
	} {
		v := &api.Volume{Meta: api.Meta{Name: strings.ReplaceAll(name, " ", "-")}, Spec: api.VolumeSpec{Size: tt.size}}
		if tt.disk {
			v.Spec.Type = api.VolumeDisk
		}
		_, err := w.c.CreateVolume(t.Context(), v)
		refused(t, name, err, tt.code, tt.hint)
		if !tt.disk {
			_, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: v.Name}, Spec: spec(func(s *api.InstanceSpec) { s.Root.Size = tt.size })}, false)
			refused(t, name, err, tt.code, tt.hint)
		}
	}
	small, err := w.c.CreateVolume(t.Context(), &api.Volume{Meta: api.Meta{Name: "small"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.c.PatchVolume(t.Context(), "", small.Name, 0, []byte(`{"spec":{"size":"900TiB"}}`))
	refused(t, "grown volume", err, api.CodeNoSpace, "4TiB")
	in := w.launch("grown", spec())
	_, err = w.c.PatchInstance(t.Context(), "", in.Name, 0, []byte(`{"spec":{"root":{"size":"900TiB"}}}`))
	refused(t, "grown root", err, api.CodeNoSpace, "4TiB")
	// A small host's pool may still promise what disks usually have.
	w.pool.total = api.GiB
	_, err = w.c.PatchVolume(t.Context(), "", small.Name, 0, []byte(`{"spec":{"size":"1TiB"}}`))
	refused(t, "small pool", err, "", "")
	_, err = w.c.PatchVolume(t.Context(), "", small.Name, 0, []byte(`{"spec":{"size":"2TiB"}}`))
	refused(t, "small pool", err, api.CodeNoSpace, "1TiB")
}

func refused(t *testing.T, what string, err error, code api.Code, hint string) {
	t.Helper()
	if code == "" {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return
	}
	if !api.IsCode(err, code) || !strings.Contains(api.AsError(err).Hint, hint) || !strings.HasSuffix(api.AsError(err).Field, "size") {
		t.Errorf("%s: %v", what, err)
	}
}
