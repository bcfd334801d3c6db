package control

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

func TestLaunchStopStartDelete(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	if in.Status.Phase != api.PhaseRunning || in.Status.PID == 0 || len(in.Status.NICs) != 1 || in.Status.UIDBase < 1<<30 {
		t.Fatalf("after launch: %+v", in.Status)
	}
	addr := in.Status.NICs[0].IPv4
	w.eng.polite[in.ID] = true
	op := w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"}))
	in, _ = w.c.Instance("", "a")
	if op.State != api.OperationDone || in.Status.Phase != api.PhaseStopped || in.Status.Exit.Signal != "SIGTERM" || in.Spec.Power != api.PowerStopped {
		t.Fatalf("after stop: %v %+v", op.Error, in.Status)
	}
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start"}))
	in, _ = w.c.Instance("", "a")
	if in.Status.Phase != api.PhaseRunning || in.Status.NICs[0].IPv4 != addr {
		t.Fatalf("after start: %+v", in.Status)
	}
	if _, err := w.c.DeleteInstance(t.Context(), "", "a", false, 0); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("delete of a running guest: %v", err)
	}
	if op := w.finish(w.c.DeleteInstance(t.Context(), "", "a", true, 0)); op.State != api.OperationDone {
		t.Errorf("forced delete: %v", op.Error)
	}
	w.clean()
}

func TestStartAndStopAreIdempotent(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start"}))
	if n := w.eng.count(in.ID); n != 1 {
		t.Errorf("%d starts", n)
	}
	for range 2 {
		if op := w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop", Force: true})); op.State != api.OperationDone {
			t.Errorf("stop: %v", op.Error)
		}
	}
}

func TestFailedLaunchLeavesNothing(t *testing.T) {
	boom := api.Errorf(api.CodeNotFound, "entry point not found")
	for name, fail := range map[string]func(*world){
		"engine":  func(w *world) { w.eng.failStart = boom },
		"storage": func(w *world) { w.pool.failCreate = boom },
		"network": func(w *world) { w.net.failPort = boom },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			fail(w)
			s := spec(func(s *api.InstanceSpec) { s.Publish = []api.Publish{{HostPort: 8080, GuestPort: 80}} })
			op := w.finish(w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: s}, true))
			if op.State != api.OperationFailed || op.Error == nil || op.Error.Code != api.CodeNotFound {
				t.Errorf("operation: %+v", op)
			}
			w.clean()
			if len(w.net.attached)+len(w.net.forwards) > 0 {
				t.Error("network is left")
			}
			w.eng.failStart, w.pool.failCreate, w.net.failPort = nil, nil, nil
			w.launch("a", s)
		})
	}
}

func TestFailedStartKeepsTheInstance(t *testing.T) {
	w := newWorld(t)
	op := w.finish(w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec()}, false))
	if op.State != api.OperationDone {
		t.Fatal(op.Error)
	}
	w.eng.failStart = errors.New("no")
	if op = w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start"})); op.State != api.OperationFailed {
		t.Errorf("start: %+v", op)
	}
	in, err := w.c.Instance("", "a")
	if err != nil || in.Status.Phase != api.PhaseFailed || in.Status.Error == nil || in.Spec.Power != api.PowerStopped {
		t.Fatalf("%v %+v", err, in)
	}
	w.eng.failStart = nil
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start"}))
	if in, _ = w.c.Instance("", "a"); in.Status.Phase != api.PhaseRunning || in.Status.Error != nil {
		t.Errorf("%+v", in.Status)
	}
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy api.RestartPolicy
		code   int
		again  bool
	}{
		{api.RestartNever, 1, false},
		{api.RestartOnFailure, 0, false},
		{api.RestartOnFailure, 3, true},
		{api.RestartAlways, 0, true},
	} {
		w := newWorld(t)
		in := w.launch("a", spec(func(s *api.InstanceSpec) { s.Restart = c.policy }))
		w.eng.end(in.ID, c.code)
		if c.again {
			w.until(in.ID, "restarted", func(in *api.Instance) bool {
				return in.Status.Restarts == 1 && in.Status.Phase == api.PhaseRunning
			})
		} else {
			w.until(in.ID, "stopped", func(in *api.Instance) bool {
				return in.Status.Phase == api.PhaseStopped && in.Status.Exit.Code == c.code && in.Spec.Power == api.PowerStopped
			})
		}
	}
}

func TestRestartsAreSpacedAndAUserStopEndsThem(t *testing.T) {
	w := newWorld(t)
	w.eng.onStart = func(s *engine.Spec) { go w.eng.end(s.ID, 1) }
	in := w.launch("a", spec(func(s *api.InstanceSpec) { s.Restart = api.RestartAlways }))
	w.until(in.ID, "restarted thrice", func(in *api.Instance) bool { return in.Status.Restarts >= 3 })
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"}))
	w.eng.set(func() { spaced(t, w.eng.at[in.ID]) })
	n := w.eng.count(in.ID)
	w.c.kick(in.ID) // as the timer of the next restart does
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"}))
	if got := w.eng.count(in.ID); got != n {
		t.Errorf("started %d times after the stop", got-n)
	}
}

func TestEphemeralInstanceGoesWithItsGuest(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec(func(s *api.InstanceSpec) { s.Ephemeral = true }))
	w.eng.end(in.ID, 0)
	w.until(in.ID, "deleted", func(in *api.Instance) bool { return in == nil })
	w.clean()
}

func TestForceInterruptsAPoliteStop(t *testing.T) {
	w := newWorld(t)
	long := 3600
	w.launch("a", spec(func(s *api.InstanceSpec) { s.StopSeconds = &long }))
	polite, err := w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop"})
	if err != nil {
		t.Fatal(err)
	}
	forced, err := w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop", Force: true})
	w.finish(forced, err)
	w.finish(polite, nil)
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	patch := []byte(`{"spec":{"resources":{"memory":67108864},"root":{"size":1073741824}}}`)
	w.eng.failUpdate = api.Errorf(api.CodeConflict, "in use")
	if op := w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, patch)); op.State != api.OperationFailed {
		t.Errorf("%+v", op)
	}
	now, _ := w.c.Instance("", "a")
	if now.Spec.Resources.Memory != 0 || w.pool.volumes[rootVolume(in)] != defaultRootSize || now.Status.Phase != api.PhaseRunning {
		t.Errorf("half of it stayed: %+v, %s", now.Spec, w.pool.volumes[rootVolume(in)])
	}
	w.eng.failUpdate = nil
	if op := w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, patch)); op.State != api.OperationDone {
		t.Fatal(op.Error)
	}
	now, _ = w.c.Instance("", "a")
	if now.Spec.Resources.Memory != 64*api.MiB || w.eng.specs[in.ID].Resources.Memory != 64*api.MiB || w.pool.volumes[rootVolume(in)] != api.GiB {
		t.Errorf("%+v", now.Spec)
	}
}

func TestPatchRefusesWhatItCantDo(t *testing.T) {
	w := newWorld(t)
	w.launch("a", spec())
	for name, c := range map[string]struct {
		patch string
		code  api.Code
	}{
		"unknown field":   {`{"spec":{"memmory":1}}`, api.CodeInvalid},
		"outside spec":    {`{"status":{"phase":"running"}}`, api.CodeInvalid},
		"another image":   {`{"spec":{"image":"x"}}`, api.CodeUnsupported},
		"power":           {`{"spec":{"power":"stopped"}}`, api.CodeInvalid},
		"too many CPUs":   {`{"spec":{"resources":{"cpus":100000}}}`, api.CodeNoResources},
		"too much memory": {`{"spec":{"resources":{"memory":"900TiB"}}}`, api.CodeNoResources},
		"not JSON":        {`{`, api.CodeInvalid},
		"unknown kind":    {`{"spec":{"kind":"vm"}}`, api.CodeUnsupported},
	} {
		if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(c.patch)); !api.IsCode(err, c.code) {
			t.Errorf("%s: %v, want code %s", name, err, c.code)
		}
	}
}

func TestCreateRefusesBadInput(t *testing.T) {
	w := newWorld(t)
	w.launch("taken", spec())
	for name, c := range map[string]struct {
		in   api.Instance
		code api.Code
	}{
		"bad name":       {api.Instance{Meta: api.Meta{Name: "No_Good"}, Spec: spec()}, api.CodeInvalid},
		"taken name":     {api.Instance{Meta: api.Meta{Name: "taken"}, Spec: spec()}, api.CodeExists},
		"no image":       {api.Instance{Meta: api.Meta{Name: "a"}}, api.CodeInvalid},
		"unknown volume": {api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{Volume: "v", Target: "/v"}} })}, api.CodeNotFound},
		"unknown pool":   {api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.Root.Pool = "p" })}, api.CodeNotFound},
		"unknown net":    {api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.NICs = []api.NIC{{Network: "n"}} })}, api.CodeNotFound},
		"mount on /proc": {api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{HostPath: "/etc", Target: "/proc/x"}} })}, api.CodeInvalid},
		"host sysctl":    {api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.Sysctls = map[string]string{"kernel.panic": "1"} })}, api.CodeInvalid},
		"no engine":      {api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.Kind = api.KindVM })}, api.CodeUnsupported},
	} {
		if _, err := w.c.CreateInstance(t.Context(), &c.in, true); !api.IsCode(err, c.code) {
			t.Errorf("%s: %v, want code %s", name, err, c.code)
		}
	}
}

func TestRestartOfTheDaemonKeepsGuestsAndFinishesWork(t *testing.T) {
	w := newWorld(t)
	a := w.launch("a", spec())
	b := w.launch("b", spec())
	w.c.Close()
	w.eng.end(b.ID, 5) // while no daemon runs
	<-w.eng.exits
	w.start()
	w.until(b.ID, "known to have ended", func(in *api.Instance) bool {
		return in.Status.Phase == api.PhaseStopped && in.Status.Exit.Code == 5
	})
	now := w.c.instances.ByID(a.ID)
	if now.Status.Phase != api.PhaseRunning || w.eng.count(a.ID) != 1 {
		t.Errorf("the running guest was touched: %+v, %d starts", now.Status, w.eng.count(a.ID))
	}
	if len(w.net.swept) != 1 || w.net.swept[0].Instance != a.ID {
		t.Errorf("ports kept: %+v", w.net.swept)
	}
}

func TestStrayGuestsAndVolumesAreRemovedAtStart(t *testing.T) {
	w := newWorld(t)
	a := w.launch("a", spec())
	w.c.Close()
	w.eng.guests["stray"] = &engine.Guest{ID: "stray", Running: true}
	w.pool.volumes["i-stray"] = 1
	w.start()
	w.clean(a.ID)
}

func TestGuestsLostWithTheHostFollowTheirPolicy(t *testing.T) {
	w := newWorld(t)
	a := w.launch("a", spec())
	b := w.launch("b", spec(func(s *api.InstanceSpec) { s.Restart = api.RestartAlways }))
	w.c.Close()
	clear(w.eng.guests)
	w.start()
	w.until(a.ID, "stopped", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseStopped && len(in.Status.Lost) > 0 })
	w.until(b.ID, "running", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseRunning })
}

func TestIdempotencyKeyRepeatsTheAnswerOnly(t *testing.T) {
	w := newWorld(t)
	ctx := WithIdempotencyKey(t.Context(), "k1")
	in := &api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec()}
	first := w.finish(w.c.CreateInstance(ctx, in, true))
	again, err := w.c.CreateInstance(ctx, in, true)
	if err != nil || again.ID != first.ID {
		t.Errorf("%v %v", again, err)
	}
	if w.c.instances.Len() != 1 {
		t.Error("made twice")
	}
}

func TestRenameMovesNameAndDNS(t *testing.T) {
	w := newWorld(t)
	in := w.launch("a", spec())
	w.launch("taken", spec())
	if _, err := w.c.RenameInstance(t.Context(), "", "a", "taken", 0); !api.IsCode(err, api.CodeExists) {
		t.Errorf("to a taken name: %v", err)
	}
	if _, err := w.c.RenameInstance(t.Context(), "", "a", "b", in.Revision+100); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("stale revision: %v", err)
	}
	w.finish(w.c.RenameInstance(t.Context(), "", "a", "b", 0))
	if got, err := w.c.Instance("", "b"); err != nil || got.ID != in.ID {
		t.Error(err)
	}
	if w.net.names["a"] || !w.net.names["b"] {
		t.Errorf("names: %v", w.net.names)
	}
}

func TestPagesCoverAllOnce(t *testing.T) {
	w := newWorld(t)
	want := []string{"a", "b", "c", "d", "e"}
	for _, n := range want {
		w.launch(n, spec())
	}
	var got []string
	q := Query{Limit: 2}
	for {
		l, err := w.c.Instances("", q)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range l.Items {
			got = append(got, in.Name)
		}
		if q.Cursor = l.Next; q.Cursor == "" {
			break
		}
	}
	if len(got) != 5 || got[0] != "a" || got[4] != "e" {
		t.Errorf("got %v", got)
	}
}

func TestEventsSurviveARestartAndResume(t *testing.T) {
	w := newWorld(t)
	w.launch("a", spec())
	var last int64
	read := func() (types []string) {
		if err := w.c.Events(t.Context(), Since{ID: last, Time: time.Unix(1, 0)}, func(e api.Event) error {
			if e.ID <= last {
				t.Errorf("event %d after %d", e.ID, last)
			}
			last = e.ID
			types = append(types, e.Type)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return types
	}
	if n := len(read()); n < 2 {
		t.Errorf("%d events of a launch", n)
	}
	w.restart()
	w.launch("b", spec())
	if got := read(); len(got) == 0 || got[len(got)-1] != "instance.started" {
		t.Errorf("after the restart: %v", got)
	}
}

func TestTokensAreCheckedAndShownOnce(t *testing.T) {
	w := newWorld(t)
	tok, err := w.c.CreateToken(t.Context(), &api.Token{Meta: api.Meta{Name: "ci"}})
	if err != nil || tok.Secret == "" || tok.Hash != "" {
		t.Fatalf("%+v %v", tok, err)
	}
	if got, err := w.c.CheckToken(tok.Secret); err != nil || got.Name != "ci" {
		t.Error(err)
	}
	if _, err := w.c.CheckToken(tok.Secret + "x"); !api.IsCode(err, api.CodeUnauthorized) {
		t.Errorf("wrong secret: %v", err)
	}
	list, _ := w.c.Tokens(t.Context())
	if len(list) != 1 || list[0].Hash != "" || list[0].Secret != "" {
		t.Errorf("%+v", list)
	}
	if err := w.c.DeleteToken(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.CheckToken(tok.Secret); err == nil {
		t.Error("a deleted token is good")
	}
}

func TestPoolWhoseDiskIsNotMountedIsNotMadeAnew(t *testing.T) {
	w := newWorld(t)
	source := t.TempDir()
	create := func(name string) error {
		_, err := w.c.CreatePool(t.Context(), &api.Pool{Meta: api.Meta{Name: name}, Spec: api.PoolSpec{Driver: "btrfs", Source: source}})
		return err
	}
	if err := create("disk"); err != nil {
		t.Fatal(err)
	}
	if err := create("other"); !api.IsCode(err, api.CodeInUse) {
		t.Errorf("a second pool in the same place: %v", err)
	}
	if err := os.Rename(filepath.Join(source, poolMark), filepath.Join(source, "away")); err != nil {
		t.Fatal(err)
	}
	w.restart()
	p, err := w.c.Pool(t.Context(), "disk")
	if err != nil || p.Status.State == "ready" {
		t.Errorf("%+v %v", p, err)
	}
	if _, err := w.c.driver("disk"); err == nil {
		t.Error("it can be used")
	}
}
