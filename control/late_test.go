package control

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// silentRegistry takes requests and answers none until the test ends; asked
// is closed when the first has come.
func silentRegistry(t *testing.T) (host string, asked <-chan struct{}) {
	first, done := make(chan struct{}, 100), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		first <- struct{}{}
		select {
		case <-r.Context().Done():
		case <-done:
		}
	}))
	t.Cleanup(func() { close(done); srv.Close() })
	return srv.Listener.Addr().String(), first
}

// What is asked of an instance while its creation is being undone must be
// answered, though the instance is gone by then.
func TestOperationsOnAnInstanceThatIsBeingCreatedEnd(t *testing.T) {
	host, asked := silentRegistry(t)
	w := newWorld(t)
	s := spec(func(s *api.InstanceSpec) { s.Image = host + "/none:1" })
	launch, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: s}, true)
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	start, err := w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start"})
	if err != nil {
		t.Fatal(err)
	}
	if op := w.finish(w.c.DeleteInstance(t.Context(), "", "a", false, 0)); op.State != api.OperationDone {
		t.Errorf("delete: %v", op.Error)
	}
	if op := w.finish(start, nil); op.State != api.OperationFailed || op.Error.Code != api.CodeConflict {
		t.Errorf("start: %s %v", op.State, op.Error)
	}
	if op := w.finish(launch, nil); op.State != api.OperationCancelled {
		t.Errorf("launch: %s %v", op.State, op.Error)
	}
	w.clean()
}

func TestConsoleThatStartsIsToldWhyItCouldNot(t *testing.T) {
	boom := api.Errorf(api.CodeNoResources, "no")
	for name, tc := range map[string]struct {
		spoil func(*world)
		code  api.Code
	}{
		"engine":               {func(w *world) { w.eng.failStart = boom }, api.CodeNoResources},
		"before the engine":    {func(w *world) { w.net.failPort = boom }, api.CodeNoResources},
		"the start is refused": {func(w *world) { w.deleting("a") }, api.CodeConflict},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			in := w.launch("a", spec(func(s *api.InstanceSpec) { s.Publish = []api.Publish{{HostPort: 8080, GuestPort: 80}} }))
			w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop", Force: true}))
			tc.spoil(w)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, _, err := w.c.Console(ctx, "", "a", ConsoleOptions{Start: true})
			if !api.IsCode(err, tc.code) {
				t.Errorf("got %v", err)
			}
			if n := len(w.c.takeWaiting(in.ID)); n > 0 {
				t.Errorf("%d still wait", n)
			}
		})
	}
}

// deleting records that an instance is to go.
func (w *world) deleting(name string) {
	w.t.Helper()
	in, err := w.c.Instance("", name)
	if err != nil {
		w.t.Fatal(err)
	}
	w.eng.failClean = api.Errorf(api.CodeBusy, "not yet")
	if op := w.finish(w.c.DeleteInstance(w.t.Context(), "", name, true, 0)); op.State != api.OperationFailed {
		w.t.Fatalf("delete %s: %+v", in.ID, op)
	}
}

// A host that goes down can't wait for a pull, nor for the patience that a
// user's own stop has.
func TestStopAllDoesNotWaitForWorkUnderWay(t *testing.T) {
	host, asked := silentRegistry(t)
	w := newWorld(t)
	long := 3600
	in := w.launch("patient", spec(func(s *api.InstanceSpec) { s.StopSeconds = &long }))
	if _, err := w.c.PowerInstance(t.Context(), "", "patient", PowerRequest{Action: "stop"}); err != nil {
		t.Fatal(err)
	}
	pull := spec(func(s *api.InstanceSpec) { s.Image = host + "/none:1" })
	if _, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "pulling"}, Spec: pull}, true); err != nil {
		t.Fatal(err)
	}
	<-asked
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.c.StopAll(t.Context(), 0)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it waits")
	}
	if now := w.c.instances.ByID(in.ID); now.Status.Phase != api.PhaseStopped {
		t.Errorf("the guest that was being stopped is %s", now.Status.Phase)
	}
	if now, err := w.c.Instance("", "pulling"); err != nil || now.Status.Phase != api.PhaseCreating {
		t.Errorf("what was being created: %v, want it to be left to the next daemon", err)
	}
}
