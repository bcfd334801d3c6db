package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
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

// A root disk grows while its guest runs where the engine can do that, and
// what can't is told.
func TestRootDiskGrowsWhileItsGuestRuns(t *testing.T) {
	v := growingVM{newVM(), new(api.Bytes)}
	w := newWorld(t, v)
	w.launch("a", vm())
	if op := w.patch("a", `{"spec":{"root":{"size":"20GiB"}}}`); op.Error != nil || op.Step != "" || *v.grown != 20*api.GiB || w.running("a") != nil {
		t.Errorf("%v, %q, grown to %s, runs with %+v", op.Error, op.Step, *v.grown, w.running("a"))
	}
	w.power("a", "pause")
	want := "takes effect at the next start: root.size 20GiB -> 30GiB"
	if op := w.patch("a", `{"spec":{"root":{"size":"30GiB"}}}`); op.Error != nil || op.Step != want || *v.grown != 20*api.GiB {
		t.Errorf("paused: %v, %q, grown to %s", op.Error, op.Step, *v.grown)
	}
	w.launch("own", api.InstanceSpec{Kind: api.KindVM})
	if op := w.patch("own", `{"spec":{"root":{"size":"40GiB"}}}`); op.Error != nil || !strings.Contains(op.Step, "its own to grow") || *v.grown != 40*api.GiB {
		t.Errorf("own system: %v, %q", op.Error, op.Step)
	}
}

// The disk of a volume is as long as it was until its guest starts anew.
func TestVolumeTellsWhatItsGuestFinds(t *testing.T) {
	w := newWorld(t, newVM())
	v, err := w.c.CreateVolume(t.Context(), &api.Volume{Meta: api.Meta{Name: "data"}, Spec: api.VolumeSpec{Type: api.VolumeDisk, Size: api.GiB}})
	if err != nil {
		t.Fatal(err)
	}
	dir, _ := w.pool.Path(t.Context(), namedVolume(v.ID))
	f, err := os.Create(filepath.Join(dir, engine.VolumeDisk)) // as the engine does at first use
	if err == nil {
		err = errors.Join(f.Truncate(int64(api.GiB)), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	w.launch("a", vm(func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{Volume: "data", Target: "/data"}} }))
	if v, err = w.c.Volume(t.Context(), "", "data"); err != nil || v.Status.Disk != 0 {
		t.Errorf("%s, %v", v.Status.Disk, err)
	}
	if v, err = w.c.PatchVolume(t.Context(), "", "data", 0, []byte(`{"spec":{"size":"2GiB"}}`)); err != nil || v.Status.Disk != api.GiB {
		t.Errorf("%s, %v", v.Status.Disk, err)
	}
	w.power("a", "stop")
	if v, err = w.c.Volume(t.Context(), "", "data"); err != nil || v.Status.Disk != 0 {
		t.Errorf("%s, %v", v.Status.Disk, err)
	}
}
