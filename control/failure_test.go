package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// events are the messages of a type of event, so far.
func (w *world) events(typ string) []string {
	w.t.Helper()
	var list []string
	err := w.c.Events(w.t.Context(), Since{Time: time.Unix(1, 0)}, func(e api.Event) error {
		if e.Type == typ {
			list = append(list, e.Message)
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// An instance has failed when its guest can't run; an operation that was
// refused or cancelled is none of its failures.
func TestOnlyAFailedInstanceIsSaidToHaveFailed(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	w.eng.failUpdate = api.Errorf(api.CodeInvalid, "too little")
	if op := w.patch("a", `{"spec":{"resources":{"memory":"64MiB"}}}`); op.State != api.OperationFailed {
		t.Fatalf("%+v", op)
	}
	if got, failed := w.events("operation.failed"), w.events("instance.failed"); len(failed) > 0 || !slices.Equal(got, []string{"instance.update: too little"}) {
		t.Errorf("update: %q, %q", got, failed)
	}
	host, asked := silentRegistry(t)
	pull, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "b"}, Spec: spec(func(s *api.InstanceSpec) { s.Image = host + "/none:1" })}, true)
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	if op := w.finish(w.c.CancelOperation(t.Context(), pull.ID)); op.State != api.OperationCancelled {
		t.Fatalf("%+v", op)
	}
	if got, failed := w.events("operation.cancelled"), w.events("instance.failed"); len(failed) > 0 || !slices.Equal(got, []string{"instance.launch"}) {
		t.Errorf("launch: %q, %q", got, failed)
	}
	w.power("a", "stop")
	w.eng.set(func() { w.eng.failStart = api.Errorf(api.CodeNoResources, "no room") })
	w.power("a", "start")
	if failed := w.events("instance.failed"); len(failed) != 1 || !strings.Contains(failed[0], "no room") || w.c.instances.ByID(in.ID).Status.Phase != api.PhaseFailed {
		t.Errorf("start: %q", failed)
	}
}

func TestACancelledStartLeavesTheInstanceStopped(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	w.power("a", "stop")
	w.eng.set(func() { w.eng.failStart = api.Errorf(api.CodeCancelled, "given up") })
	if op := w.power("a", "start"); op.State != api.OperationCancelled {
		t.Errorf("%+v", op)
	}
	if now := w.c.instances.ByID(in.ID); now.Status.Phase != api.PhaseStopped || now.Status.Error != nil || now.Spec.Power != api.PowerStopped {
		t.Errorf("%s, %v, wanted %s", now.Status.Phase, now.Status.Error, now.Spec.Power)
	}
}
