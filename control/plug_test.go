package control

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// plugWorld has machines, and a disk and a tree to plug.
func plugWorld(t *testing.T) (*world, *fakeVM) {
	v := newVM()
	w := newWorld(t, v, newPVM())
	for _, vol := range []api.Volume{
		{Meta: api.Meta{Name: "disk"}, Spec: api.VolumeSpec{Type: "disk"}}, {Meta: api.Meta{Name: "more"}, Spec: api.VolumeSpec{Type: "disk"}}, {Meta: api.Meta{Name: "tree"}},
	} {
		if _, err := w.c.CreateVolume(t.Context(), &vol); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.c.CreateNetwork(t.Context(), &api.Network{Meta: api.Meta{Name: "back"}}); err != nil {
		t.Fatal(err)
	}
	return w, v
}

func volume(name, target string) api.Attachment {
	return api.Attachment{Mount: &api.Mount{Volume: name, Target: target}}
}

func port(network string) api.Attachment { return api.Attachment{NIC: &api.NIC{Network: network}} }

// attach is done, with the note that it ends with.
func (w *world) attach(name string, a api.Attachment) string {
	w.t.Helper()
	return w.done(w.c.AttachDevice(w.t.Context(), "", name, a))
}

func (w *world) detach(name string, d api.Detachment) string {
	w.t.Helper()
	return w.done(w.c.DetachDevice(w.t.Context(), "", name, d))
}

func (w *world) done(op *api.Operation, err error) string {
	w.t.Helper()
	if op = w.finish(op, err); op.State != api.OperationDone {
		w.t.Fatalf("%s: %v", op.Verb, op.Error)
	}
	return op.Step
}

// mounts are what an instance's guest has.
func (w *world) mounts(name string) []api.Mount { return inForce(w.get(name)).Spec.Mounts }

func (w *world) get(name string) *api.Instance {
	w.t.Helper()
	in, err := w.c.Instance("", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

func denied(t *testing.T, what string, err error, code api.Code, hint string) {
	t.Helper()
	if !api.IsCode(err, code) || !strings.Contains(api.AsError(err).Hint, hint) {
		t.Errorf("%s: %v", what, err)
	}
}

func portNames(in *api.Instance) (l []string) {
	for _, p := range in.Status.NICs {
		l = append(l, p.Name+" on "+p.Network)
	}
	return l
}

func TestDisksComeToAndGoFromAMachineThatRuns(t *testing.T) {
	w, v := plugWorld(t)
	w.launch("a", vm())
	w.launch("b", vm())
	if note := w.attach("a", volume("disk", "/data")); note != "" {
		t.Errorf("it says %q", note)
	}
	if len(v.disks) != 1 {
		t.Fatalf("plugged: %v", v.disks)
	}
	for _, d := range v.disks {
		if d.Target != "/data" || d.Size != defaultDiskSize || !strings.HasPrefix(d.ID, "v-") || len(d.ID) > 20 {
			t.Errorf("the engine got %+v", d)
		}
	}
	_, err := w.c.AttachDevice(t.Context(), "", "a", volume("more", "/data"))
	denied(t, "path taken", err, api.CodeExists, "")
	_, err = w.c.AttachDevice(t.Context(), "", "a", volume("none", "/x"))
	denied(t, "unknown volume", err, api.CodeNotFound, "volume create")
	_, err = w.c.AttachDevice(t.Context(), "", "a", volume("tree", "/x"))
	denied(t, "a tree of files", err, api.CodeUnsupported, "")
	_, err = w.c.DetachDevice(t.Context(), "", "a", api.Detachment{Volume: "root"})
	denied(t, "unknown mount", err, api.CodeNotFound, "disk at /data")
	_, err = w.c.DetachDevice(t.Context(), "", "a", api.Detachment{Volume: "disk", NIC: "eth0"})
	denied(t, "two at a time", err, api.CodeInvalid, "")
	if op := w.finish(w.c.AttachDevice(t.Context(), "", "b", volume("disk", "/data"))); !api.IsCode(op.Error, api.CodeInUse) || len(w.get("b").Spec.Mounts) > 0 {
		t.Errorf("a disk that another guest has: %v", op.Error)
	}
	if err := w.c.DeleteVolume(t.Context(), "", "disk"); !api.IsCode(err, api.CodeInUse) {
		t.Errorf("deleting it gives %v", err)
	}
	w.restart()
	if note := w.detach("a", api.Detachment{Volume: "disk"}); note != "" || len(v.disks) > 0 {
		t.Errorf("detached: %q, %v", note, v.disks)
	}
	if note := w.attach("a", port("back")); note != "" {
		t.Errorf("of something else it says %q", note)
	}
	w.attach("b", volume("disk", "/data"))
	if len(v.disks) != 1 || len(w.mounts("b")) != 1 || len(w.mounts("a")) != 0 {
		t.Errorf("disks %v, the guest has %v", v.disks, w.mounts("b"))
	}
}

func TestDeviceThatStaysUntilTheNextStartIsStillInUse(t *testing.T) {
	w, v := plugWorld(t)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{Volume: "disk", Target: "/data"}} }))
	w.launch("b", vm())
	if note := w.detach("a", api.Detachment{Target: "/data"}); !strings.Contains(note, "next start: mounts./data disk -> none (it was there at the start") {
		t.Errorf("it says %q", note)
	}
	if got := w.get("a"); len(got.Spec.Mounts) != 0 || len(w.mounts("a")) != 1 {
		t.Errorf("wanted %v, has %v", got.Spec.Mounts, w.mounts("a"))
	}
	if op := w.finish(w.c.AttachDevice(t.Context(), "", "b", volume("disk", "/data"))); !api.IsCode(op.Error, api.CodeInUse) {
		t.Errorf("the guest still has it: %v", op.Error)
	}
	if note := w.attach("a", volume("more", "/data")); !strings.Contains(note, "another volume at /data") {
		t.Errorf("it says %q", note)
	}
	w.power("a", "stop")
	w.power("a", "start")
	if s := v.specs[in.ID]; len(s.Mounts) != 1 || !strings.Contains(s.Mounts[0].Source, "v-") || len(w.mounts("a")) != 1 {
		t.Errorf("it starts with %v", s.Mounts)
	}
	w.attach("b", volume("disk", "/data"))
}

func TestPortsComeToAndGoFromAGuestThatRuns(t *testing.T) {
	w, v := plugWorld(t)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Publish = []api.Publish{{HostPort: 8080, GuestPort: 80}} }))
	if note := w.attach("a", port("back")); note != "" {
		t.Errorf("it says %q", note)
	}
	got := w.get("a")
	if d := gocmp.Diff([]string{"eth0 on default", "eth1 on back"}, portNames(got)); d != "" {
		t.Fatal(d)
	}
	added := got.Status.NICs[1]
	if added.Link == "" || added.Slot != 2 || added.IPv4 == "" || added.IPv4 == got.Status.NICs[0].IPv4 {
		t.Errorf("the port is %+v", added)
	}
	if d := gocmp.Diff([]string{linkName(in.ID, 1)}, slices.Collect(maps.Keys(w.net.attached))); d != "" {
		t.Error(d)
	}
	if n := v.nics["eth1"]; n.MAC.String() != added.MAC || n.IPv4.String() != added.IPv4 || n.Gateway4.IsValid() {
		t.Errorf("the guest got %+v", n)
	}
	w.attach("a", port("back"))
	_, err := w.c.DetachDevice(t.Context(), "", "a", api.Detachment{Network: "back"})
	denied(t, "two ports on it", err, api.CodeConflict, "eth2 on back")
	_, err = w.c.AttachDevice(t.Context(), "", "a", port("none"))
	denied(t, "unknown network", err, api.CodeNotFound, "")
	_, err = w.c.AttachDevice(t.Context(), "", "a", api.Attachment{NIC: &api.NIC{Name: "eth1"}})
	denied(t, "name taken", err, api.CodeExists, "")
	w.restart()
	if d := gocmp.Diff(3, len(w.net.swept)); d != "" {
		t.Errorf("ports that a new daemon keeps: %s", d)
	}
	w.detach("a", api.Detachment{NIC: "eth1"})
	if d := gocmp.Diff([]string{"eth0 on default", "eth2 on back"}, portNames(w.get("a"))); d != "" {
		t.Error(d)
	}
	// The first stays in the machine until the next start, which finds the
	// other one unchanged.
	if note := w.detach("a", api.Detachment{Network: "default"}); !strings.Contains(note, "nics.eth0 default -> none (") {
		t.Errorf("it says %q", note)
	}
	if d := gocmp.Diff([]string{"eth0 on default", "eth2 on back"}, portNames(w.get("a"))); d != "" {
		t.Error(d)
	}
	before := w.get("a").Status.NICs[1]
	w.power("a", "stop")
	v.nics = map[string]engine.NIC{}
	w.power("a", "start")
	if got := w.get("a").Status.NICs; len(got) != 1 || got[0] != before {
		t.Errorf("it was %+v and is %+v", before, got)
	}
	if s := v.specs[in.ID].NICs; len(s) != 1 || s[0].Name != "eth2" || !s[0].Gateway4.IsValid() {
		t.Errorf("it starts with %+v", s)
	}
	for i := range 7 {
		w.attach("a", api.Attachment{NIC: &api.NIC{Name: "lan" + string(rune('0'+i))}})
	}
	_, err = w.c.AttachDevice(t.Context(), "", "a", port("back"))
	denied(t, "a ninth", err, api.CodeInvalid, "")
}

func TestWhatWallsCantPlugWaitsForTheNextStart(t *testing.T) {
	w, _ := plugWorld(t)
	w.launch("c", spec())
	w.launch("p", spec(func(s *api.InstanceSpec) { s.Kind = api.KindPVM }))
	if note := w.attach("c", volume("tree", "/data")); !strings.Contains(note, "next start: mounts./data none -> tree (nothing in a running container has the right to mount)") {
		t.Errorf("a container says %q", note)
	}
	// What waits already is not told again.
	if note := w.attach("c", api.Attachment{Mount: &api.Mount{HostPath: "/tmp", Target: "/more"}}); !strings.Contains(note, "mounts./more none -> /tmp (nothing") || strings.Contains(note, "/data") {
		t.Errorf("of the second it says %q", note)
	}
	if op := w.patch("c", `{"spec":{"tty":true}}`); op.Error != nil || op.Step != "takes effect at the next start: tty false -> true" {
		t.Errorf("of a setting it says %q, %v", op.Step, op.Error)
	}
	if note := w.detach("c", api.Detachment{HostPath: "/tmp"}); note != "" {
		t.Errorf("of one that the guest never had it says %q", note)
	}
	if note := w.attach("p", port("back")); !strings.Contains(note, "next start: nics.eth1 none -> back (a guest of kind pvm can't get a port while it runs)") {
		t.Errorf("a pvm says %q", note)
	}
	w.launch("alone", spec(func(s *api.InstanceSpec) { s.Kind, s.NICs = api.KindPVM, []api.NIC{} }))
	if note := w.attach("alone", port("back")); !strings.Contains(note, "next start: nics.eth0 none -> back (") {
		t.Errorf("one without ports says %q", note)
	}
	if got := w.get("p"); len(got.Status.NICs) != 1 || len(got.Spec.NICs) != 2 {
		t.Errorf("wanted %v, has %v", got.Spec.NICs, got.Status.NICs)
	}
	if err := w.c.DeleteNetwork(t.Context(), "", "back"); !api.IsCode(err, api.CodeInUse) || !strings.Contains(api.AsError(err).Hint, "detach back") {
		t.Errorf("deleting the network gives %v", err)
	}
	w.power("p", "stop")
	w.power("p", "start")
	if d := gocmp.Diff([]string{"eth0 on default", "eth1 on back"}, portNames(w.get("p"))); d != "" {
		t.Error(d)
	}
}

func TestAFailedPlugLeavesNothing(t *testing.T) {
	w, v := plugWorld(t)
	w.launch("a", vm())
	before := w.get("a")
	v.set(func() { v.failPlug = api.Errorf(api.CodeTimeout, "the guest doesn't want it") })
	for _, a := range []api.Attachment{volume("disk", "/data"), port("back")} {
		if op := w.finish(w.c.AttachDevice(t.Context(), "", "a", a)); !api.IsCode(op.Error, api.CodeTimeout) {
			t.Errorf("error %v", op.Error)
		}
	}
	got := w.get("a")
	if d := gocmp.Diff(before.Spec, got.Spec) + gocmp.Diff(before.Status.NICs, got.Status.NICs); d != "" || len(w.net.attached) != 0 {
		t.Errorf("%s, attached %v", d, w.net.attached)
	}
	v.set(func() { v.failPlug = nil })
	w.attach("a", port("back"))
	if a := w.get("a").Status.NICs[1].IPv4; a != "10.9.0.3/24" {
		t.Errorf("the next address is %s: one was kept", a)
	}
	// One patch of both, of which the second fails, undoes the first.
	patch := `{"spec":{"nics":[{},{"network":"back","name":"eth1"},{"network":"back","name":"eth2"}],"mounts":[{"volume":"none","target":"/x"}]}}`
	if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(patch)); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("error %v", err)
	}
	w.launch("b", vm(func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{Volume: "disk", Target: "/data"}} }))
	patch = strings.Replace(patch, "none", "disk", 1)
	op := w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, []byte(patch)))
	if !api.IsCode(op.Error, api.CodeInUse) || len(v.nics) != 1 || len(w.net.attached) != 1 {
		t.Errorf("%v: ports %v, attached %v", op.Error, v.nics, w.net.attached)
	}
}

func TestTwoAttachmentsAtATimeAreBothMade(t *testing.T) {
	w, v := plugWorld(t)
	w.launch("a", vm())
	first, err := w.c.AttachDevice(t.Context(), "", "a", volume("disk", "/data"))
	if err != nil {
		t.Fatal(err)
	}
	w.attach("a", volume("more", "/more"))
	if op := w.finish(first, nil); op.State != api.OperationDone || len(v.disks) != 2 || len(w.get("a").Spec.Mounts) != 2 {
		t.Errorf("%v, %v", op.Error, v.disks)
	}
}

// A daemon that dies between the guest's change and the record's leaves an
// operation that the next one repeats.
func TestPlugIsRepeatedAfterACrash(t *testing.T) {
	w, v := plugWorld(t)
	in := w.launch("a", vm())
	vol, err := w.c.Volume(t.Context(), "", "disk")
	if err != nil {
		t.Fatal(err)
	}
	v.disks[namedVolume(vol.ID)] = engine.Disk{}
	v.nics["eth1"] = engine.NIC{Name: "eth1"}
	w.attach("a", volume("disk", "/data"))
	w.attach("a", port("back"))
	if v.disks[namedVolume(vol.ID)].Target != "/data" || !v.nics["eth1"].IPv4.IsValid() || len(w.net.attached) != 1 {
		t.Errorf("%v %v %v of %s", v.disks, v.nics, w.net.attached, in.ID)
	}
}

func TestPortsOfAStoppedInstanceFollowItsSpecAtOnce(t *testing.T) {
	w, _ := plugWorld(t)
	op := w.finish(w.c.CreateInstance(context.Background(), &api.Instance{Meta: api.Meta{Name: "s"}, Spec: spec()}, false))
	if op.Error != nil {
		t.Fatal(op.Error)
	}
	first := w.get("s").Status.NICs[0]
	w.attach("s", port("back"))
	w.detach("s", api.Detachment{NIC: "eth0"})
	if d := gocmp.Diff([]string{"eth1 on back"}, portNames(w.get("s"))); d != "" {
		t.Error(d)
	}
	w.attach("s", port("default"))
	if got := w.get("s").Status.NICs[1]; got.IPv4 != first.IPv4 || got.MAC != first.MAC || got.Name != "eth0" {
		t.Errorf("what was given back is not given again: %+v, was %+v", got, first)
	}
}

// The first port has the default route, and its network answers for names.
func TestDetachingTheFirstPortTellsWhatChangesWithIt(t *testing.T) {
	w, _ := plugWorld(t)
	w.launch("a", vm(func(s *api.InstanceSpec) { s.NICs = []api.NIC{} }))
	for _, network := range []string{"default", "default", "back"} {
		if note := w.attach("a", port(network)); note != "" {
			t.Errorf("attaching to %s says %q", network, note)
		}
	}
	for _, tt := range [][2]string{
		{"eth0", "the default route is by eth1 from the next start on"},
		{"eth1", "the default route is by eth2, and the name server that of network back, from the next start on"},
		{"eth2", ""},
	} {
		if note := w.detach("a", api.Detachment{NIC: tt[0]}); note != tt[1] {
			t.Errorf("detaching %s says %q", tt[0], note)
		}
	}
}

// A change that meets the guest's end is made without it.
func TestDeviceIsTakenFromAGuestThatEndsMeanwhile(t *testing.T) {
	for name, says := range map[string]*api.Error{
		"its agent is gone":   api.Errorf(api.CodeUnavailable, "unmounting: the connection ended"),
		"its monitor is gone": api.Errorf(api.CodeConflict, "is ending"),
	} {
		t.Run(name, func(t *testing.T) {
			w, v := plugWorld(t)
			in := w.launch("a", vm())
			w.attach("a", volume("disk", "/data"))
			v.set(func() { v.failPlug = api.Errorf(says.Code, "guest %s: %s", in.ID, says.Message) })
			op, err := w.c.DetachDevice(t.Context(), "", "a", api.Detachment{Volume: "disk"})
			v.end(in.ID, 0)
			if note := w.done(op, err); strings.Contains(note, in.ID) {
				t.Errorf("it says %q", note)
			}
			w.until(in.ID, "stopped", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseStopped })
			if got := w.get("a"); len(got.Spec.Mounts) != 0 || got.Status.Running != nil {
				t.Errorf("wanted %v, runs with %v", got.Spec.Mounts, got.Status.Running)
			}
			if err := w.c.DeleteVolume(t.Context(), "", "disk"); err != nil {
				t.Error(err)
			}
		})
	}
}
