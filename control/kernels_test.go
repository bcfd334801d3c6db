package control

import (
	"context"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/kernel"
)

// fakeKernels are the kernels of a store without files.
type fakeKernels struct {
	Kernels
	list []api.Kernel
}

func (f *fakeKernels) List() []api.Kernel { return slices.Clone(f.list) }

func (f *fakeKernels) ByName(name string) (*api.Kernel, error) {
	for _, k := range f.list {
		if k.Name == name {
			return &k, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "kernel %q not found", name)
}

func (f *fakeKernels) Get(kind api.Kind, arch, name string) (*api.Kernel, error) {
	if name == "" {
		for _, k := range f.list {
			if k.Default && k.Kind == kind && k.Arch == arch {
				return &k, nil
			}
		}
	}
	k, err := f.ByName(name)
	if err == nil && (k.Kind != kind || k.Arch != arch) {
		return nil, api.Errorf(api.CodeInvalid, "kernel %q is for others", name)
	}
	return k, err
}

func (f *fakeKernels) Import(_ context.Context, r io.Reader, in api.KernelAdd) (*api.Kernel, error) {
	if _, err := io.ReadAll(r); err != nil {
		return nil, err
	}
	return f.add(in.Name), nil
}

func (f *fakeKernels) Fetch(_ context.Context, in api.KernelFetch, p kernel.Progress) (*api.Kernel, error) {
	p("downloading", 1, 2)
	if in.Arch == "riscv64" {
		return nil, api.Errorf(api.CodeNotFound, "there is no package").WithHint("look elsewhere")
	}
	return f.add("fetched"), nil
}

func (f *fakeKernels) add(name string) *api.Kernel {
	k := api.Kernel{Name: name, Kind: api.KindVM, Arch: runtime.GOARCH}
	f.list = append(f.list, k)
	return &k
}

func (f *fakeKernels) SetDefault(name string) error {
	_, err := f.ByName(name)
	return err
}

func (f *fakeKernels) Delete(name string) error {
	n := len(f.list)
	f.list = slices.DeleteFunc(f.list, func(k api.Kernel) bool { return k.Name == name })
	if len(f.list) == n {
		return api.Errorf(api.CodeNotFound, "kernel %q not found", name)
	}
	return nil
}

// withKernels gives the controller kernels.
func withKernels(w *world, list ...api.Kernel) *fakeKernels {
	f := &fakeKernels{list: list}
	w.c.Kernels = f
	return f
}

// record writes an instance without anybody making it live.
func (w *world) record(name string, change func(*api.Instance)) {
	w.t.Helper()
	in := &api.Instance{Meta: newMeta(api.DefaultProject, &api.Meta{Name: name}), Spec: api.InstanceSpec{Kind: api.KindVM, Image: "tiny", Power: api.PowerStopped}}
	in.Status.Phase = api.PhaseFailed
	change(in)
	if err := w.st.Commit(w.t.Context(), w.c.instances.Create(in)); err != nil {
		w.t.Fatal(err)
	}
}

func TestKernelsKnowTheirUsers(t *testing.T) {
	w := newWorld(t)
	host := runtime.GOARCH
	k := withKernels(
		w,
		api.Kernel{Name: "a", Kind: api.KindVM, Arch: host, Default: true},
		api.Kernel{Name: "b", Kind: api.KindVM, Arch: host},
		api.Kernel{Name: "foreign", Kind: api.KindVM, Arch: "other"},
		api.Kernel{Name: "u", Kind: api.KindPVM, Arch: host},
	)
	w.record("named", func(in *api.Instance) { in.Spec.Machine.Kernel = "b" })
	w.record("any", func(*api.Instance) {})
	w.record("para", func(in *api.Instance) { in.Spec.Kind = api.KindPVM })
	w.record("container", func(in *api.Instance) { in.Spec.Kind = api.KindContainer })
	w.record("own", func(in *api.Instance) { in.Spec.Machine.Firmware = "uefi" })

	users := func() map[string][]string {
		all, err := w.c.AllKernels(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m := map[string][]string{}
		for _, k := range all {
			m[k.Name] = k.UsedBy
		}
		return m
	}
	want := map[string][]string{"a": nil, "b": {"default/named"}, "foreign": nil, "u": {"default/para"}}
	if d := cmp.Diff(want, users()); d != "" {
		t.Error(d)
	}
	for name, code := range map[string]api.Code{"b": api.CodeInUse, "u": api.CodeInUse, "none": api.CodeNotFound} {
		if err := w.c.DeleteKernel(t.Context(), name); !api.IsCode(err, code) {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	// The last one of its kind is needed by all that name none.
	for _, name := range []string{"a", "foreign"} {
		if err := w.c.DeleteKernel(t.Context(), name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	if d := cmp.Diff([]string{"default/any", "default/named"}, users()["b"]); d != "" {
		t.Error(d)
	}
	if len(k.list) != 2 {
		t.Errorf("%v", k.list)
	}
}

func TestFetchOfAKernelIsAnOperation(t *testing.T) {
	w := newWorld(t)
	withKernels(w)
	op, err := w.c.FetchKernel(t.Context(), api.KernelFetch{Distribution: "debian"})
	if end := w.finish(op, err); end.State != api.OperationDone || end.Result != "fetched" || end.Verb != "kernel.fetch" {
		t.Errorf("%+v", end)
	}
	op, err = w.c.FetchKernel(t.Context(), api.KernelFetch{Distribution: "debian", Arch: "riscv64"})
	if op = w.finish(op, err); op.Error == nil || op.Error.Code != api.CodeNotFound || !strings.Contains(op.Error.Hint, "elsewhere") {
		t.Errorf("%+v %+v", op, op.Error)
	}
	if _, err := w.c.FetchKernel(t.Context(), api.KernelFetch{Distribution: "plan9"}); !api.IsCode(err, api.CodeInvalid) {
		t.Error(err)
	}
	if k, err := w.c.ImportKernel(t.Context(), api.KernelAdd{Name: "sent"}, strings.NewReader("x")); err != nil || k.Name != "sent" {
		t.Errorf("%v %v", k, err)
	}
	if k, err := w.c.SetDefaultKernel(t.Context(), "sent"); err != nil || k.Name != "sent" {
		t.Errorf("%v %v", k, err)
	}
	if _, err := w.c.SetDefaultKernel(t.Context(), "none"); !api.IsCode(err, api.CodeNotFound) {
		t.Error(err)
	}
}

func TestNamedKernelMustFit(t *testing.T) {
	w := newWorld(t)
	withKernels(w, api.Kernel{Name: "a", Kind: api.KindVM, Arch: runtime.GOARCH})
	in := &api.Instance{Spec: api.InstanceSpec{Kind: api.KindVM, Image: "tiny"}}
	for name, code := range map[string]api.Code{"": "", "a": "", "b": api.CodeNotFound} {
		in.Spec.Machine.Kernel = name
		if err := w.c.namedKernel(in); code == "" && err != nil || code != "" && !api.IsCode(err, code) {
			t.Errorf("%q: %v", name, err)
		}
	}
	in.Spec.Kind, in.Spec.Machine.Kernel = api.KindPVM, "a"
	if err := w.c.namedKernel(in); !api.IsCode(err, api.CodeInvalid) || api.AsError(err).Field != "spec.machine.kernel" {
		t.Errorf("for another kind: %v", err)
	}
}

func TestDoctorTellsWhatBootsImages(t *testing.T) {
	w := newWorld(t)
	withKernels(w, api.Kernel{Name: "a", Kind: api.KindVM, Arch: runtime.GOARCH, Default: true})
	if f := w.c.kernelFinding(api.KindVM, runtime.GOARCH); f.State != "ok" || f.Detail != "a" {
		t.Errorf("%+v", f)
	}
	if f := w.c.kernelFinding(api.KindPVM, runtime.GOARCH); f.State != "missing" || f.Detail == "" {
		t.Errorf("%+v", f)
	}
	// Another architecture needs a kernel and an agent of its own.
	withKernels(w, api.Kernel{Name: "foreign", Kind: api.KindVM, Arch: "riscv64", Default: true})
	if f := w.c.kernelFinding(api.KindVM, "riscv64"); f.State != "ok" || f.Name != "kernel for riscv64" {
		t.Errorf("%+v", f)
	}
	w.c.AgentFor = func(arch string) (string, error) {
		return "", api.Errorf(api.CodeUnsupported, "no agent for %s", arch).WithHint("make agents")
	}
	if f := w.c.kernelFinding(api.KindVM, "riscv64"); f.State != "missing" || f.Remedy != "make agents" {
		t.Errorf("%+v", f)
	}
}
