package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/cleave-project/cleave/api"
)

// Debian's kernels for machines, and the release that has them for all
// architectures, with the keyring that signs it.
const (
	debianSuite   = "trixie"
	debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
)

// packageOf names the package with a kernel for a kind and an architecture.
func packageOf(kind api.Kind, arch string) (string, error) {
	switch {
	case kind == api.KindPVM && arch != runtime.GOARCH:
		return "", api.Errorf(api.CodeUnsupported, "a paravirtual machine has the host's architecture, %s, and not %s", runtime.GOARCH, arch).WithField("arch").
			WithHint("use --kind vm")
	case kind == api.KindPVM && arch != "amd64":
		return "", api.Errorf(api.CodeUnsupported, "User Mode Linux exists for amd64 only, and this host is %s", arch).WithHint("use --kind vm")
	case kind == api.KindPVM:
		return "user-mode-linux", nil
	case arch == "riscv64": // which has no smaller one
		return "linux-image-riscv64", nil
	}
	return "linux-image-cloud-" + arch, nil
}

// Fetch downloads a distribution's kernel package, unless the newest is there
// already, and adds what is in it. The package isn't installed.
func (s *Store) Fetch(ctx context.Context, in api.KernelFetch, progress Progress) (*api.Kernel, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	kind, arch := cmp.Or(in.Kind, api.KindVM), cmp.Or(in.Arch, runtime.GOARCH)
	pkg, err := packageOf(kind, arch)
	if err != nil {
		return nil, err
	}
	wayOut := func(e *api.Error) error {
		return e.WithHint("check the network and /etc/apt, or get %s for %s from https://packages.debian.org yourself, and give it: `cleave kernel add FILE.deb`", pkg, arch)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, wayOut(api.Errorf(api.CodeUnsupported, "kernels are fetched by apt-get, which this host doesn't have: %w", err))
	}
	f := &fetch{store: s, in: in, kind: kind, arch: arch, pkg: pkg, progress: progress}
	k, err := f.run(ctx)
	var coded *api.Error
	switch {
	case err == nil || errors.As(err, &coded) || ctx.Err() != nil:
		return k, err
	case errors.Is(err, errNoPackage):
		return nil, wayOut(api.Errorf(api.CodeNotFound, "there is no package %s for %s: %w", pkg, arch, err))
	}
	return nil, wayOut(api.Errorf(api.CodeUnavailable, "package %s for %s could not be fetched: %w", pkg, arch, err))
}

// fetch is one fetch on its ways.
type fetch struct {
	store    *Store
	in       api.KernelFetch
	kind     api.Kind
	arch     string
	pkg      string
	progress Progress
}

// way is one set of package sources.
type way struct {
	arch   string // of lists of our own; empty for the host's as they are
	debian bool   // Debian's sources instead of the host's
}

// run tries the package sources in turn: the host's with its lists as they
// are, the host's with fresh lists, then Debian's own.
func (f *fetch) run(ctx context.Context) (*api.Kernel, error) {
	var ways []way
	if f.arch == runtime.GOARCH {
		ways = append(ways, way{})
	}
	ways = append(ways, way{arch: f.arch})
	if _, err := os.Stat(debianKeyring); err == nil {
		ways = append(ways, way{arch: f.arch, debian: true})
	}
	var reason error
	for _, w := range ways {
		k, err := f.from(ctx, w)
		var final *api.Error // no other source can mend it
		if err == nil || ctx.Err() != nil || errors.As(err, &final) {
			return k, err
		}
		// A network that fails tells more than a package that isn't there.
		if reason == nil || !errors.Is(err, errNoPackage) {
			reason = err
		}
	}
	return nil, reason
}

// from fetches by one set of sources.
func (f *fetch) from(ctx context.Context, w way) (*api.Kernel, error) {
	dir, err := os.MkdirTemp(f.store.Dir, temporary)
	if err != nil {
		return nil, f.store.fullDisk(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	var sources string
	if w.debian {
		sources = debianSources((&apt{dir: dir}).mirror(ctx), debianSuite, debianKeyring)
	}
	a, err := newApt(dir, w.arch, sources)
	if err != nil {
		return nil, err
	}
	var updateErr error
	if w.arch != "" {
		f.progress("fetching package lists", 0, 0)
		// One source of several may fail, and the others have the package.
		updateErr = a.update(ctx, nil)
	}
	pkg, err := a.concrete(ctx, f.pkg)
	var c *candidate
	if err == nil {
		c, err = a.find(ctx, pkg)
	}
	if err != nil {
		return nil, cmp.Or(updateErr, err)
	}
	if k := f.store.bySource(f.kind, f.arch, packageSource(c.name, c.version)); k != nil {
		return f.have(k)
	}
	step := "downloading " + c.name
	f.progress(step, 0, c.size)
	deb, err := a.download(ctx, c, func(percent float64) { f.progress(step, int64(percent/100*float64(c.size)), c.size) })
	if err != nil {
		return nil, err
	}
	f.progress("unpacking "+c.name, 0, 0)
	file, err := openFile(deb)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return f.store.add(ctx, file, api.KernelAdd{Kind: f.kind, Default: f.in.Default}, c.name, true)
}

// have answers with a kernel that is there already.
func (f *fetch) have(k *api.Kernel) (*api.Kernel, error) {
	f.progress(fmt.Sprintf("%s is there already", k.Source), 0, 0)
	if f.in.Default {
		if err := f.store.SetDefault(k.Name); err != nil {
			return nil, err
		}
	}
	return f.store.ByName(k.Name)
}

// packageSource says that a kernel came from a package.
func packageSource(name, version string) string { return "package " + name + " " + version }

// bySource finds a kernel by where it came from.
func (s *Store) bySource(kind api.Kind, arch, source string) *api.Kernel {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.kernels {
		if r.class() == class(kind, arch) && r.Kernel.Source == source {
			return s.shown(r)
		}
	}
	return nil
}
