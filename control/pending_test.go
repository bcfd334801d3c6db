package control

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

func (w *world) patch(name, patch string) *api.Operation {
	w.t.Helper()
	return w.finish(w.c.PatchInstance(w.t.Context(), "", name, 0, []byte(patch)))
}

func (w *world) power(name, action string) *api.Operation {
	w.t.Helper()
	return w.finish(w.c.PowerInstance(w.t.Context(), "", name, PowerRequest{Action: action, Force: action == "stop"}))
}

// running is what the record says that the guest runs with.
func (w *world) running(name string) *api.InstanceSpec {
	w.t.Helper()
	in, err := w.c.Instance("", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return in.Status.Running
}

func TestWhatWaitsForTheNextStartIsNamedWithBothValues(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Resources.Memory, s.Env = 256*api.MiB, map[string]string{"OLD": "1"} }))
	v.limitMemory = 256 * api.MiB
	// The memory waits, and nothing else for its sake.
	op := w.patch("a", `{"spec":{"resources":{"memory":"1GiB","pids":99},"env":{"OLD":null,"NEW":"x"},"root":{"size":"20GiB"},"restart":"always"}}`)
	want := "takes effect at the next start: env.NEW none -> x, env.OLD 1 -> none, resources.memory 256MiB -> 1GiB, root.size default -> 20GiB"
	if op.Error != nil || op.Step != want {
		t.Errorf("%v, %q", op.Error, op.Step)
	}
	r := w.running("a")
	if r == nil || r.Resources != (api.Resources{Memory: 256 * api.MiB, PIDs: 99}) || r.Env["OLD"] != "1" || len(r.Env) != 1 ||
		r.Restart != api.RestartAlways || r.Root.Size != 0 || v.specs[in.ID].Resources.PIDs != 99 {
		t.Errorf("runs with %+v", r)
	}
	// It goes on waiting while others change, and is not told of again.
	op = w.patch("a", `{"spec":{"resources":{"cpuWeight":50}}}`)
	if r := w.running("a"); op.Error != nil || op.Step != "" || r.Resources.Memory != 256*api.MiB || r.Resources.CPUWeight != 50 || v.specs[in.ID].Resources.CPUWeight != 50 {
		t.Errorf("%v, %q, runs with %+v", op.Error, op.Step, r)
	}
	op = w.patch("a", `{"spec":{"tty":true}}`)
	if op.Error != nil || op.Step != "takes effect at the next start: tty false -> true" {
		t.Errorf("%v, %q", op.Error, op.Step)
	}
	// What is taken back waits no more.
	op = w.patch("a", `{"spec":{"resources":{"memory":"128MiB"},"tty":false,"env":{"OLD":"1","NEW":null}}}`)
	if r := w.running("a"); op.Error != nil || op.Step != "" || !cmp.Equal(r.Changes(&w.c.instances.ByID(in.ID).Spec), []api.Change{{Path: "root.size", From: "default", To: "20GiB"}}) {
		t.Errorf("%v, %q, runs with %+v", op.Error, op.Step, r)
	}
	w.power("a", "stop")
	if r := w.running("a"); r != nil {
		t.Errorf("stopped, it runs with %+v", r)
	}
	w.power("a", "start")
	if r := w.running("a"); r != nil || v.specs[in.ID].Root.Size != 20*api.GiB {
		t.Errorf("started anew, it runs with %+v", r)
	}
}

func TestLimitsOfAPausedMachineWaitForItsResume(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Resources.Memory = 256 * api.MiB }))
	w.power("a", "pause")
	v.failUpdate = api.Errorf(api.CodeInternal, "its kernel doesn't answer")
	op := w.patch("a", `{"spec":{"resources":{"memory":"128MiB"},"tty":true}}`)
	want := "takes effect when it is resumed: resources.memory 256MiB -> 128MiB; takes effect at the next start: tty false -> true"
	if op.Error != nil || op.Step != want || v.specs[in.ID].Resources.Memory != 256*api.MiB {
		t.Errorf("%v, %q", op.Error, op.Step)
	}
	v.set(func() { v.failUpdate = nil })
	if op := w.power("a", "resume"); op.Error != nil {
		t.Error(op.Error)
	}
	if r := w.running("a"); v.specs[in.ID].Resources.Memory != 128*api.MiB || r == nil || r.TTY || r.Resources.Memory != 128*api.MiB {
		t.Errorf("resumed, it runs with %+v", r)
	}
	if got := w.events("instance.failed"); len(got) > 0 {
		t.Errorf("%q", got)
	}
}

// A machine goes on from its memory as the one that it was.
func TestSavedMemoryIsThatOfTheMachineThatRan(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Resources.Memory = 256 * api.MiB }))
	v.limitMemory = 256 * api.MiB
	w.patch("a", `{"spec":{"resources":{"memory":"1GiB"}}}`)
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop", Save: true}))
	w.power("a", "start")
	if s := v.specs[in.ID]; s.Machine.Restore == "" || s.Machine.Memory != 256*api.MiB || w.running("a").Resources.Memory != 256*api.MiB {
		t.Errorf("started with %s, runs with %+v", s.Machine.Memory, w.running("a"))
	}
	w.power("a", "restart")
	if s := v.specs[in.ID]; s.Machine.Memory != api.GiB || w.running("a") != nil {
		t.Errorf("restarted with %s, runs with %+v", s.Machine.Memory, w.running("a"))
	}
}

func TestArchitectureStaysAndBootTimeChangesAtOnce(t *testing.T) {
	w := newWorld(t, newVM())
	w.launch("a", vm())
	if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"machine":{"arch":"riscv64"}}}`)); !api.IsCode(err, api.CodeUnsupported) {
		t.Error(err)
	}
	w.launch("own", api.InstanceSpec{Kind: api.KindVM})
	if op := w.patch("own", `{"spec":{"machine":{"bootSeconds":7}}}`); op.Error != nil || op.Step != "" || w.running("own") != nil {
		t.Errorf("%v, %q, %+v", op.Error, op.Step, w.running("own"))
	}
}
