package control

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// stopped makes an instance that ran once, and wrote a file.
func (w *world) stopped(name string, s api.InstanceSpec, file string) *api.Instance {
	w.t.Helper()
	in := w.launch(name, s)
	w.finish(w.c.PowerInstance(w.t.Context(), "", name, PowerRequest{Action: "stop", Force: true}))
	path := filepath.Join(w.pool.dir, rootVolume(in), file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return w.c.instances.ByID(in.ID)
}

// content is how a file begins: disks are long.
func (w *world) content(in *api.Instance, file string) string {
	f, err := os.Open(filepath.Join(w.pool.dir, rootVolume(in), file))
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, len("kept"))
	n, _ := io.ReadFull(f, b)
	return string(b[:n])
}

func TestAMachinesDiskGoesBehindAnotherWallAndBack(t *testing.T) {
	w := newWorld(t, newVM(), newPVM())
	in := w.stopped("a", vm(), engine.RootDisk)
	for _, kind := range []string{"pvm", "vm"} {
		op := w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"kind":"`+kind+`"}}`)))
		now := w.c.instances.ByID(in.ID)
		if op.Error != nil || string(now.Spec.Kind) != kind || w.content(now, engine.RootDisk) != "kept" {
			t.Fatalf("%s: %v, %+v", kind, op.Error, now)
		}
		if len(w.pool.volumes) != 1 || now.Status.NICs[0] != in.Status.NICs[0] {
			t.Errorf("%s: volumes %v, ports %+v", kind, w.pool.volumes, now.Status.NICs)
		}
	}
	w.restart()
	if now := w.c.instances.ByID(in.ID); w.content(now, engine.RootDisk) == "" {
		t.Error("the root was swept")
	}
}

func TestAWallThatCantBeChangedLeavesAllAsItWas(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.stopped("a", spec(), "upper/file")
	v.failStart = api.Errorf(api.CodeUnavailable, "no")
	op := w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"kind":"vm"}}`)))
	now := w.c.instances.ByID(in.ID)
	if op.Error == nil || now.Spec.Kind == api.KindVM || w.content(now, "upper/file") != "kept" || len(w.pool.volumes) != 1 {
		t.Errorf("%v: %+v, volumes %v", op.Error, now.Spec, w.pool.volumes)
	}
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start"}))
	if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"kind":"vm"}}`)); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("while it runs: %v", err)
	}
}

func TestACopyHasFilesAndSettingsAndItsOwnAddresses(t *testing.T) {
	w := newWorld(t)
	in := w.stopped("a", spec(func(s *api.InstanceSpec) { s.Env = map[string]string{"A": "b"} }), "upper/file")
	op := w.finish(w.c.CopyInstance(t.Context(), "", "a", "b", ""))
	if op.Error != nil {
		t.Fatal(op.Error)
	}
	to, err := w.c.Instance("", "b")
	if err != nil {
		t.Fatal(err)
	}
	if w.content(to, "upper/file") != "kept" || to.Spec.Env["A"] != "b" || to.Status.Phase != api.PhaseStopped {
		t.Errorf("%+v", to)
	}
	if a, b := in.Status.NICs[0], to.Status.NICs[0]; a.MAC == b.MAC || a.IPv4 == b.IPv4 || in.Status.UIDBase == to.Status.UIDBase {
		t.Errorf("addresses are shared: %+v, %+v", a, b)
	}
	w.finish(w.c.PowerInstance(t.Context(), "", "b", PowerRequest{Action: "start"}))
	if _, err := w.c.CopyInstance(t.Context(), "", "b", "c", ""); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("of one that runs: %v", err)
	}
	if _, err := w.c.CopyInstance(t.Context(), "", "a", "b", ""); !api.IsCode(err, api.CodeExists) {
		t.Errorf("over another: %v", err)
	}
	w.pool.failCreate = api.Errorf(api.CodeNoSpace, "full")
	op = w.finish(w.c.CopyInstance(t.Context(), "", "a", "c", ""))
	if !api.IsCode(op.Error, api.CodeNoSpace) || w.c.instances.ByID(in.ID).Status.Phase != api.PhaseStopped {
		t.Errorf("%v: %+v", op.Error, w.c.instances.ByID(in.ID).Status)
	}
	w.clean(in.ID, to.ID)
}

// What the last daemon had a machine do is not taken for its instance's guest.
func TestUpkeepOfTheLastDaemonIsEnded(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.stopped("a", vm(), engine.RootDisk)
	v.mu.Lock()
	v.guests[in.ID] = &engine.Guest{ID: in.ID, PID: 1, Running: true, Upkeep: true}
	v.mu.Unlock()
	w.restart()
	v.mu.Lock()
	left := v.guests[in.ID]
	v.mu.Unlock()
	if left != nil || w.c.live(in.ID) != nil {
		t.Errorf("it runs: %+v", left)
	}
	if op := w.finish(w.c.CopyInstance(t.Context(), "", "a", "b", api.KindVM)); op.Error != nil {
		t.Error(op.Error)
	}
}
