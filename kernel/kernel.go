package kernel

import (
	"context"
	"log/slog"

	"github.com/cleave-project/cleave/api"
)

// Options say where kernels live and where agents are found.
type Options struct {
	Dir string // holds a directory for each kernel
	// Agent finds the static agent of an architecture, as Go names it.
	Agent func(arch string) (path string, err error)
	Log   *slog.Logger
}

// Boot is what a machine boots an image with. All are paths on the host.
type Boot struct {
	Name    string
	Version string // release, as uname -r says
	Image   string // the bootable image, or the program linux.uml
	Initrd  string // initramfs with agent and modules
	Modules string // EROFS of /lib/modules/Version, for the guest to load more from
	Args    string // more for the kernel's command line
}

// Progress tells how far a fetch is: what it does, and bytes of total.
type Progress func(step string, done, total int64)

// Store keeps kernels. Its methods may be called from any goroutine.
type Store struct {
	Options
}

// Open takes up the kernels below o.Dir, and removes what interrupted work
// left there. What is damaged is logged and left out.
func Open(o Options) (*Store, error) { return &Store{Options: o}, nil }

// Add takes a kernel from files of the host.
func (s *Store) Add(context.Context, api.KernelAdd) (*api.Kernel, error) {
	return nil, none("", "", "")
}

// Fetch downloads a distribution's kernel package and adds what is in it.
func (s *Store) Fetch(context.Context, api.KernelFetch, Progress) (*api.Kernel, error) {
	return nil, none("", "", "")
}

// List are the kernels, by kind, architecture and name.
func (s *Store) List() []api.Kernel { return nil }

// Get finds a kernel, the default one of its kind and architecture if name
// is empty.
func (s *Store) Get(kind api.Kind, arch, name string) (*api.Kernel, error) {
	return nil, none(kind, arch, name)
}

// ByName finds a kernel by its name alone.
func (s *Store) ByName(name string) (*api.Kernel, error) { return nil, none("", "", name) }

// Delete removes a kernel. Another one of its kind and architecture becomes
// the default one if it was.
func (s *Store) Delete(name string) error { return none("", "", name) }

// SetDefault makes a kernel the default one of its kind and architecture.
func (s *Store) SetDefault(name string) error { return none("", "", name) }

// Boot finds a kernel as Get does, and its initramfs, which is built if it
// isn't there or the agent has changed since.
func (s *Store) Boot(_ context.Context, kind api.Kind, arch, name string) (Boot, error) {
	return Boot{}, none(kind, arch, name)
}

func none(kind api.Kind, arch, name string) error {
	if name != "" {
		return api.Errorf(api.CodeNotFound, "kernel %q not found", name).WithHint("`cleave kernel list` shows what there is")
	}
	return api.Errorf(api.CodeNotFound, "there is no kernel for kind %s on %s", kind, arch).
		WithHint("get one with `cleave kernel fetch debian --kind %s --arch %s`", kind, arch)
}
