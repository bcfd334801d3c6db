package control

import (
	"context"
	"io"
	"runtime"
	"slices"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/kernel"
)

// KernelStore is what the controller needs of *kernel.Store, which documents
// the methods, to keep kernels.
type KernelStore interface {
	Add(ctx context.Context, in api.KernelAdd) (*api.Kernel, error)
	Import(ctx context.Context, r io.Reader, in api.KernelAdd) (*api.Kernel, error)
	Fetch(ctx context.Context, in api.KernelFetch, progress kernel.Progress) (*api.Kernel, error)
	List() []api.Kernel
	Get(kind api.Kind, arch, name string) (*api.Kernel, error)
	ByName(name string) (*api.Kernel, error)
	SetDefault(name string) error
	Delete(name string) error
}

// kernelUsers are the instances that need a kernel: those that name it or run
// with it, and if it is the only one that they can get, those that name none.
func (c *Controller) kernelUsers(k *api.Kernel) []string {
	only := !slices.ContainsFunc(c.Kernels.List(), func(o api.Kernel) bool {
		return o.Name != k.Name && o.Kind == k.Kind && o.Arch == k.Arch
	})
	var users []string
	for _, in := range c.instances.All() {
		if kindOf(in) != k.Kind || ownSystem(in) {
			continue
		}
		named := in.Spec.Machine.Kernel == k.Name
		runs := in.Status.Kernel == k.Name && live(in.Status.Phase)
		if named || runs || (only && in.Spec.Machine.Kernel == "" && archOf(in) == k.Arch) {
			users = append(users, in.Project+"/"+in.Name)
		}
	}
	slices.Sort(users)
	return users
}

// namedKernel refuses a kernel that isn't there, or can't boot the instance.
func (c *Controller) namedKernel(in *api.Instance) error {
	name := in.Spec.Machine.Kernel
	if name == "" {
		return nil
	}
	if _, err := c.Kernels.Get(kindOf(in), archOf(in), name); err != nil {
		return api.AsError(err).WithField("spec.machine.kernel")
	}
	return nil
}

// kernelFinding tells the doctor what boots images in a kind of machine.
func (c *Controller) kernelFinding(kind api.Kind, arch string) api.Finding {
	f := api.Finding{Area: string(kind), Name: "kernel for images", State: "ok"}
	if arch != runtime.GOARCH {
		f.Name = "kernel for " + arch
	}
	k, err := c.Kernels.Get(kind, arch, "")
	if err == nil {
		f.Detail = k.Name
		if c.AgentFor != nil { // its initramfs has the agent
			_, err = c.AgentFor(arch)
		}
	}
	if e := api.AsError(err); e != nil {
		f.State, f.Detail, f.Remedy = "missing", e.Message, e.Hint
	}
	return f
}

// live tells whether a guest has processes in a phase.
func live(p api.Phase) bool {
	return p == api.PhaseStarting || p == api.PhaseRunning || p == api.PhasePaused
}

// AllKernels lists the kernels of this host.
func (c *Controller) AllKernels(context.Context) ([]api.Kernel, error) {
	list := c.Kernels.List()
	for i := range list {
		list[i].UsedBy = c.kernelUsers(&list[i])
	}
	return list, nil
}

// Kernel finds a kernel by its name.
func (c *Controller) Kernel(_ context.Context, name string) (*api.Kernel, error) {
	k, err := c.Kernels.ByName(name)
	if err != nil {
		return nil, err
	}
	k.UsedBy = c.kernelUsers(k)
	return k, nil
}

// AddKernel takes a kernel from files of the host.
func (c *Controller) AddKernel(ctx context.Context, in api.KernelAdd) (*api.Kernel, error) {
	k, err := c.Kernels.Add(ctx, in)
	return c.kernelAdded(ctx, k, err)
}

// ImportKernel takes a package or a kernel's file that the caller sends.
func (c *Controller) ImportKernel(ctx context.Context, in api.KernelAdd, r io.Reader) (*api.Kernel, error) {
	k, err := c.Kernels.Import(ctx, r, in)
	return c.kernelAdded(ctx, k, err)
}

func (c *Controller) kernelAdded(ctx context.Context, k *api.Kernel, err error) (*api.Kernel, error) {
	if err != nil {
		return nil, err
	}
	c.emit("kernel.added", &api.Meta{Name: k.Name}, k.Source, nil)
	return c.Kernel(ctx, k.Name)
}

// FetchKernel has a distribution's kernel package brought.
func (c *Controller) FetchKernel(ctx context.Context, in api.KernelFetch) (*api.Operation, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	return c.runOperation(ctx, "kernel.fetch", in.Distribution, func(ctx context.Context, p func(string, int64, int64)) (string, error) {
		k, err := c.Kernels.Fetch(ctx, in, p)
		if k, err = c.kernelAdded(ctx, k, err); err != nil {
			return "", err
		}
		return k.Name, nil
	})
}

// SetDefaultKernel makes a kernel the default one of its kind and
// architecture. Guests that run have it after their next start.
func (c *Controller) SetDefaultKernel(ctx context.Context, name string) (*api.Kernel, error) {
	if err := c.Kernels.SetDefault(name); err != nil {
		return nil, err
	}
	c.emit("kernel.default", &api.Meta{Name: name}, "", nil)
	return c.Kernel(ctx, name)
}

// DeleteKernel removes a kernel that no instance needs.
func (c *Controller) DeleteKernel(ctx context.Context, name string) error {
	k, err := c.Kernel(ctx, name)
	if err == nil && len(k.UsedBy) > 0 {
		return api.Errorf(api.CodeInUse, "kernel %q is used by %s", name, fmtList(k.UsedBy)).
			WithHint("add another kernel for kind %s on %s, or give those another one: `cleave set NAME kernel=OTHER`; running ones need a restart", k.Kind, k.Arch)
	}
	// One that is damaged isn't known, and can be deleted all the same.
	if err := c.Kernels.Delete(name); err != nil {
		return err
	}
	c.emit("kernel.deleted", &api.Meta{Name: name}, "", nil)
	return nil
}
