package control

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/kernel"
)

// bootKernels has one kernel of each kind, and knows names.
type bootKernels struct{ Kernels }

func (bootKernels) Get(kind api.Kind, arch, name string) (*api.Kernel, error) {
	if name == "none" {
		return nil, api.Errorf(api.CodeNotFound, "kernel %q not found", name)
	}
	return &api.Kernel{Name: name, Kind: kind, Arch: arch}, nil
}

func (bootKernels) Boot(_ context.Context, kind api.Kind, arch, name string) (kernel.Boot, error) {
	return kernel.Boot{Name: cmp.Or(name, string(kind)+"-"+arch), Image: "/boot/image", Initrd: "/boot/initrd"}, nil
}

// fakeVM is an engine of machines that can do everything.
type fakeVM struct {
	*fakeEngine
	failSave, failInsert, failPlug error
	medium                         string
	disks                          map[string]engine.Disk // plugged
	nics                           map[string]engine.NIC
}

func newVM() *fakeVM {
	f := newFake()
	f.kind = api.KindVM
	f.caps = engine.Capabilities{
		Available: true, Pause: true, Resize: true, WriteLimits: true, Disks: true, Firmware: true, Display: true, Plug: true, Save: true, TPM: true,
		Archs: []string{runtime.GOARCH, "riscv64"}, MinMemory: 48 * api.MiB, MinMemoryOf: map[string]api.Bytes{"riscv64": 128 * api.MiB},
	}
	return &fakeVM{fakeEngine: f, disks: map[string]engine.Disk{}, nics: map[string]engine.NIC{}}
}

func (f *fakeVM) Save(_ context.Context, id, path string) error {
	if f.failSave != nil {
		return f.failSave
	}
	if err := os.WriteFile(path, []byte("memory"), 0o600); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finish(id, api.ExitStatus{Reason: "killed"})
	return nil
}

func (f *fakeVM) InsertMedium(_ context.Context, _, path string) error {
	if f.failInsert == nil {
		f.medium = path
	}
	return f.failInsert
}

func (f *fakeVM) AttachDisk(_ context.Context, _ string, d engine.Disk) error {
	return plugInto(f, f.disks, d.ID, d)
}

func (f *fakeVM) DetachDisk(_ context.Context, _, disk string) error {
	return unplugFrom(f, f.disks, disk)
}

func (f *fakeVM) AttachNIC(_ context.Context, _ string, n engine.NIC, _ *os.File) error {
	return plugInto(f, f.nics, n.Name, n)
}

func (f *fakeVM) DetachNIC(_ context.Context, id, name string) error {
	f.mu.Lock()
	for _, n := range f.specs[id].NICs {
		if n.Name == name && f.nics[name].Name == "" {
			f.mu.Unlock()
			return api.Errorf(api.CodeUnsupported, "port %s was there at the start", name)
		}
	}
	f.mu.Unlock()
	return unplugFrom(f, f.nics, name)
}

func plugInto[T any](f *fakeVM, to map[string]T, name string, v T) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failPlug != nil {
		return f.failPlug
	}
	if _, ok := to[name]; ok {
		return api.Errorf(api.CodeExists, "it has %s already", name)
	}
	to[name] = v
	return nil
}

func unplugFrom[T any](f *fakeVM, from map[string]T, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failPlug != nil {
		return f.failPlug
	}
	if _, ok := from[name]; !ok {
		return api.Errorf(api.CodeNotFound, "it has no %s", name)
	}
	delete(from, name)
	return nil
}

// growingVM is one whose disks grow while it runs.
type growingVM struct {
	*fakeVM
	grown *api.Bytes
}

func (f growingVM) GrowRoot(_ context.Context, _ string, size api.Bytes) error {
	*f.grown = max(*f.grown, size)
	return nil
}

// newPVM is an engine of paravirtual machines, which can do little.
func newPVM() *fakeEngine {
	f := newFake()
	f.kind = api.KindPVM
	f.caps = engine.Capabilities{Available: true, Disks: true, Archs: []string{runtime.GOARCH}, MaxCPUs: 1}
	return f
}

func vm(change ...func(*api.InstanceSpec)) api.InstanceSpec {
	return spec(append([]func(*api.InstanceSpec){func(s *api.InstanceSpec) { s.Kind = api.KindVM }}, change...)...)
}

func TestAnEngineThatIsNotAvailableSaysWhyAndWhatIs(t *testing.T) {
	v := newVM()
	v.caps = engine.Capabilities{Reason: api.Errorf(api.CodeUnsupported, "QEMU is not there").WithHint("install qemu-system-x86")}
	w := newWorld(t, v, newPVM())
	_, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: vm()}, true)
	for _, part := range []string{"QEMU is not there", "install qemu-system-x86", "container, pvm"} {
		if !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
	v.set(func() { v.caps = newVM().caps }) // it was installed meanwhile
	w.launch("a", vm())
}

func TestWhatAWallLacksIsToldBeforeAnythingIsMade(t *testing.T) {
	w := newWorld(t, newVM(), newPVM())
	for _, v := range []api.Volume{{Meta: api.Meta{Name: "tree"}}, {Meta: api.Meta{Name: "disk"}, Spec: api.VolumeSpec{Type: "disk"}}} {
		if _, err := w.c.CreateVolume(t.Context(), &v); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(volume string) func(*api.InstanceSpec) {
		return func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{Volume: volume, Target: "/v"}} }
	}
	for _, c := range []struct {
		kind   api.Kind
		change func(*api.InstanceSpec)
		field  string
		others string // kinds that have it
	}{
		{"vm", func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{HostPath: "/tmp", Target: "/v"}} }, "spec.mounts", ": container"},
		{"vm", mount("tree"), "spec.mounts", ": container"},
		{"container", mount("disk"), "spec.mounts", ": pvm, vm"},
		{"pvm", func(s *api.InstanceSpec) { s.Image, s.Command = "", nil }, "spec.machine.firmware", ": vm"},
		{"pvm", func(s *api.InstanceSpec) { s.Resources.CPUs = 2 }, "spec.resources.cpus", ": container, vm"},
		{"vm", func(s *api.InstanceSpec) {
			s.Machine.Arch = map[bool]string{true: "arm64", false: "amd64"}[runtime.GOARCH == "amd64"]
		}, "spec.machine.arch", "no kind"},
		{"vm", func(s *api.InstanceSpec) { s.Resources.Memory = 20 * api.MiB }, "spec.resources.memory", "48MiB"},
		{"vm", func(s *api.InstanceSpec) { s.Resources.Memory = api.MiB }, "spec.resources.memory", "48MiB"},
		{"vm", func(s *api.InstanceSpec) { s.Resources.Memory, s.Machine.Arch = 127*api.MiB, "riscv64" }, "spec.resources.memory", "128MiB"},
		{"container", func(s *api.InstanceSpec) { s.Resources.Memory = api.MiB }, "spec.resources.memory", "6MiB"},
		{"container", func(s *api.InstanceSpec) { s.Machine.TPM = true }, "spec.machine.tpm", "vm"},
	} {
		_, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: spec(func(s *api.InstanceSpec) { s.Kind = c.kind }, c.change)}, true)
		var e *api.Error
		if !errors.As(err, &e) || e.Field != c.field || !strings.Contains(e.Hint, c.others) {
			t.Errorf("%s of %s: %v", c.field, c.kind, err)
		}
	}
	w.launch("fine", vm(mount("disk")))
	_, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "b"}, Spec: vm(mount("disk"))}, false)
	if err != nil {
		t.Fatal(err)
	}
	op := w.finish(w.c.PowerInstance(t.Context(), "", "b", PowerRequest{Action: "start"}))
	if !api.IsCode(op.Error, api.CodeInUse) {
		t.Errorf("two guests write to one disk: %v", op.Error)
	}
}

func TestMachinesGetWhatTheyAreMadeOf(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Resources.CPUs, s.Root.Size = 1.5, api.GiB }))
	got := v.specs[in.ID]
	want := &engine.Machine{
		Arch: runtime.GOARCH, CPUs: 2, Memory: 256 * api.MiB,
		Kernel: engine.Kernel{Name: "vm-" + runtime.GOARCH, Image: "/boot/image", Initrd: "/boot/initrd"},
	}
	if d := gocmp.Diff(want, got.Machine); d != "" {
		t.Error(d)
	}
	if got.Root.Size != api.GiB || w.pool.volumes[rootVolume(in)] <= api.GiB || got.Resources.Memory != 256*api.MiB {
		t.Errorf("root %s in a volume of %s, memory %s", got.Root.Size, w.pool.volumes[rootVolume(in)], got.Resources.Memory)
	}
	taps, err := got.Taps(t.Context())
	if err != nil || len(taps) != len(got.NICs) {
		t.Errorf("%d taps for %d ports: %v", len(taps), len(got.NICs), err)
	}
	for _, f := range taps {
		f.Close()
	}
	if in.Status.Kernel != want.Kernel.Name {
		t.Errorf("kernel %q", in.Status.Kernel)
	}
	_, err = w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "b"}, Spec: vm(func(s *api.InstanceSpec) { s.Machine.Kernel = "none" })}, true)
	if !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("without its kernel: %v", err)
	}
	w.clean(in.ID)
}

func TestAnEmptyMachineHasADiskAndADrive(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	iso := mediumFile(t)
	in := w.launch("a", api.InstanceSpec{Kind: api.KindVM, Root: api.RootDisk{Size: 2 * api.GiB}, Machine: api.Machine{ISO: iso}})
	got := v.specs[in.ID]
	if st, err := os.Stat(filepath.Join(got.Root.Dir, engine.RootDisk)); err != nil || st.Size() != int64(2*api.GiB) {
		t.Errorf("root disk: %v, %v", st, err)
	}
	if got.Machine.Firmware.Type != "bios" || got.Machine.Memory != api.GiB || !got.System ||
		!gocmp.Equal(got.Machine.Disks, []engine.Disk{{ID: "cdrom", Path: iso, ReadOnly: true, CDROM: true}}) {
		t.Errorf("%+v", got.Machine)
	}
	set := func(patch string) *api.Operation {
		return w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, []byte(patch)))
	}
	v.medium = iso
	if op := set(`{"spec":{"machine":{"iso":null}}}`); op.Error != nil || v.medium != "" {
		t.Errorf("ejecting: %v, %q is in", op.Error, v.medium)
	}
	v.failInsert = api.Errorf(api.CodeInternal, "the drive is stuck")
	if op := set(`{"spec":{"machine":{"iso":"` + iso + `"}}}`); op.Error == nil || w.c.instances.ByID(in.ID).Spec.Machine.ISO != "" {
		t.Errorf("inserting: %v", op.Error)
	}
	v.failInsert = nil
	if err := os.Remove(iso); err != nil {
		t.Fatal(err)
	}
	if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"machine":{"iso":"`+iso+`"}}}`)); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("a medium that is gone: %v", err)
	}
	w.finish(w.c.DeleteInstance(t.Context(), "", "a", true, 0))
	if left, _ := os.ReadDir(filepath.Join(w.dir, "machines")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	w.clean()
}

func TestSavedMemoryIsUsedOnce(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	in := w.launch("a", vm(func(s *api.InstanceSpec) { s.Restart = api.RestartAlways }))
	power := func(r PowerRequest) error {
		t.Helper()
		if op := w.finish(w.c.PowerInstance(t.Context(), "", "a", r)); op.Error != nil {
			return op.Error
		}
		return nil
	}
	now := func() *api.Instance { return w.c.instances.ByID(in.ID) }

	v.failSave = api.Errorf(api.CodeNoSpace, "the disk is full")
	if err := power(PowerRequest{Action: "stop", Save: true}); !api.IsCode(err, api.CodeNoSpace) || now().Status.Phase != api.PhaseRunning {
		t.Fatalf("%v: %s", err, now().Status.Phase)
	}
	v.failSave = nil
	if _, err := w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop", Save: true, Force: true}); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("saved by force: %v", err)
	}
	if err := power(PowerRequest{Action: "stop", Save: true}); err != nil || !now().Status.Saved || now().Status.Phase != api.PhaseStopped {
		t.Fatalf("%v: %+v", err, now().Status)
	}
	if _, err := w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"resources":{"cpus":2}}}`)); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("another machine around its memory: %v", err)
	}
	w.restart() // of the daemon
	v.failStart = api.Errorf(api.CodeUnavailable, "QEMU does not like it")
	if err := power(PowerRequest{Action: "start"}); err == nil || !strings.Contains(err.Error(), "--fresh") || !now().Status.Saved {
		t.Fatalf("%v: %+v", err, now().Status)
	}
	v.failStart = nil
	if err := power(PowerRequest{Action: "start"}); err != nil || now().Status.Saved || v.specs[in.ID].Machine.Restore == "" {
		t.Fatalf("%v: %+v", err, now().Status)
	}
	if left, _ := os.ReadDir(w.c.machineDir(in.ID)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := errors.Join(power(PowerRequest{Action: "stop", Save: true}), power(PowerRequest{Action: "start", Fresh: true})); err != nil {
		t.Fatal(err)
	}
	if now().Status.Saved || v.specs[in.ID].Machine.Restore != "" {
		t.Errorf("a fresh start went on from %q", v.specs[in.ID].Machine.Restore)
	}
	if _, err := w.c.PowerInstance(t.Context(), "", w.launch("c", spec()).Name, PowerRequest{Action: "stop", Save: true}); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("a container: %v", err)
	}
}

func TestAGuestThatRebootsIsStartedAgainAndOneThatCrashesByPolicy(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	for _, c := range []struct {
		policy api.RestartPolicy
		exit   api.ExitStatus
		again  bool
	}{
		{api.RestartNever, api.ExitStatus{Reason: "reboot"}, true},
		{api.RestartNever, api.ExitStatus{Code: 255, Reason: "panic"}, false},
		{api.RestartOnFailure, api.ExitStatus{Code: 255, Reason: "panic"}, true},
		{api.RestartOnFailure, api.ExitStatus{Code: 137, Reason: "crash"}, true},
		{api.RestartOnFailure, api.ExitStatus{Reason: "poweroff"}, false},
		{api.RestartAlways, api.ExitStatus{Reason: "poweroff"}, true},
	} {
		name := string(c.policy) + "-" + c.exit.Reason
		in := w.launch(name, vm(func(s *api.InstanceSpec) { s.Restart = c.policy }))
		v.set(func() { v.finish(in.ID, c.exit) })
		if c.again {
			w.until(in.ID, "started again", func(*api.Instance) bool { return v.count(in.ID) == 2 })
			continue
		}
		w.until(in.ID, "stopped", func(in *api.Instance) bool { return in.Status.Phase == api.PhaseStopped })
		if got := w.c.instances.ByID(in.ID).Status.Exit; got == nil || *got != c.exit {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestMemoryThatCantBeGivenNowWaitsForTheNextStart(t *testing.T) {
	v := newVM()
	w := newWorld(t, v)
	w.launch("a", vm())
	v.failUpdate = api.Errorf(api.CodeConflict, "it was started with less")
	op := w.finish(w.c.PatchInstance(t.Context(), "", "a", 0, []byte(`{"spec":{"resources":{"memory":"1GiB"}}}`)))
	if op.Error != nil || !strings.Contains(op.Step, "next start") {
		t.Errorf("%v, %q", op.Error, op.Step)
	}
}

// What a guest's kept memory knows of a disk stays true.
func TestKeptMemoryHoldsItsDisks(t *testing.T) {
	w := newWorld(t, newVM())
	if _, err := w.c.CreateVolume(t.Context(), &api.Volume{Meta: api.Meta{Name: "data"}, Spec: api.VolumeSpec{Type: api.VolumeDisk, Size: api.GiB}}); err != nil {
		t.Fatal(err)
	}
	with := vm(func(s *api.InstanceSpec) { s.Mounts = []api.Mount{{Volume: "data", Target: "/data"}} })
	w.launch("a", with)
	w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "stop", Save: true}))
	if !w.get("a").Status.Saved {
		t.Fatalf("%+v", w.get("a").Status)
	}
	refused := func(what string, err error) {
		t.Helper()
		if !api.IsCode(err, api.CodeInUse) || !strings.Contains(err.Error(), "memory that is kept of a") {
			t.Errorf("%s: %v", what, err)
		}
	}
	op := w.finish(w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "b"}, Spec: with}, true))
	refused("another guest", op.Error)
	_, err := w.c.PatchVolume(t.Context(), "", "data", 0, []byte(`{"spec":{"size":"2GiB"}}`))
	refused("another size", err)
	if op := w.finish(w.c.PowerInstance(t.Context(), "", "a", PowerRequest{Action: "start", Fresh: true})); op.Error != nil {
		t.Fatal(op.Error)
	}
	if _, err = w.c.PatchVolume(t.Context(), "", "data", 0, []byte(`{"spec":{"size":"2GiB"}}`)); err != nil {
		t.Error(err)
	}
}

func TestDiskIsMountedOnce(t *testing.T) {
	w := newWorld(t, newVM())
	if _, err := w.c.CreateVolume(t.Context(), &api.Volume{Meta: api.Meta{Name: "data"}, Spec: api.VolumeSpec{Type: api.VolumeDisk, Size: api.GiB}}); err != nil {
		t.Fatal(err)
	}
	_, err := w.c.CreateInstance(t.Context(), &api.Instance{Meta: api.Meta{Name: "a"}, Spec: vm(func(s *api.InstanceSpec) {
		s.Mounts = []api.Mount{{Volume: "data", Target: "/a"}, {Volume: "data", Target: "/b"}}
	})}, false)
	if !api.IsCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "twice") {
		t.Error(err)
	}
}
