package control

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestTakenPortNamesWhoHasIt(t *testing.T) {
	w := newWorld(t)
	s := spec(func(s *api.InstanceSpec) { s.Publish = []api.Publish{{HostPort: 8080, GuestPort: 80}} })
	w.launch("web", s)
	op := w.finish(w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "b"}, Spec: s}, true))
	if !api.IsCode(op.Error, api.CodeConflict) || !strings.Contains(op.Error.Message, `port 8080/tcp: instance "web" has it`) {
		t.Errorf("%+v", op.Error)
	}
	w.finish(w.c.PowerInstance(t.Context(), "", "web", PowerRequest{Action: "stop", Force: true}))
	w.launch("b", s)
}
