package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/kernel"
)

// wanted are the packages with the programs that cleaved uses, and those that
// one wants to look with.
var wanted = []string{"btrfs-progs", "e2fsprogs", "erofs-utils", "iproute2", "nftables", "util-linux"}

// needless are packages that others depend on for their scripts alone.
var needless = []string{"debconf", "gcc-12-base", "logsave"}

// packages finds the packages and all that they need in the cache, or fetches
// them.
func (o *Options) packages(ctx context.Context) ([]string, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%q %q", wanted, needless))
	dir := filepath.Join(o.Cache, "packages-"+hex.EncodeToString(key[:6]))
	if debs := debsIn(dir); len(debs) > 0 && !o.Fresh {
		return debs, nil
	}
	o.Tell("fetching packages")
	temp, err := os.MkdirTemp(o.Cache, temporary)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil {
		return nil, err
	}
	if err := fetch(ctx, temp, wanted...); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(temp, dir); err != nil {
		return nil, err
	}
	return debsIn(dir), nil
}

func debsIn(dir string) []string {
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb")) // sorted
	return debs
}

// fetch downloads packages and all that they need by the lists that the host
// has, and by lists of our own if that fails: only root can renew the host's.
func fetch(ctx context.Context, dir string, names ...string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return api.Errorf(api.CodeUnsupported, "packages are fetched by apt-get, which this host doesn't have: %w", err).
			WithHint("build the appliance on Debian or Ubuntu, and copy the cache")
	}
	// A host without packages: all that is needed would be installed.
	empty := filepath.Join(dir, "status")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return err
	}
	defer os.Remove(empty)
	options := []string{"-o", "Dir::State::status=" + empty}
	err := download(ctx, dir, options, names)
	if err == nil {
		return nil
	}
	lists := filepath.Join(dir, "lists")
	defer os.RemoveAll(lists)
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(lists, d), 0o755); err != nil {
			return err
		}
	}
	options = append(options, "-o", "Dir::State="+lists, "-o", "Dir::Cache="+filepath.Join(lists, "cache"), "-o", "APT::Sandbox::User=")
	if _, updateErr := run(ctx, dir, "apt-get", append(slices.Clone(options), "update")...); updateErr != nil {
		return errors.Join(err, updateErr)
	}
	return download(ctx, dir, options, names)
}

func download(ctx context.Context, dir string, options, names []string) error {
	args := append(slices.Clone(options), "-y", "--no-install-recommends", "--print-uris", "install")
	out, err := run(ctx, dir, "apt-get", append(args, names...)...)
	if err != nil {
		return err
	}
	// 'URI' NAME_VERSION_ARCH.deb SIZE HASH
	var exact []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		parts := strings.Split(strings.TrimSuffix(f[1], ".deb"), "_")
		if len(parts) != 3 || slices.Contains(needless, parts[0]) {
			continue
		}
		// The colon of an epoch is written %3a in names of files.
		exact = append(exact, parts[0]+"="+strings.ReplaceAll(parts[1], "%3a", ":"))
	}
	if len(exact) < len(names) {
		return fmt.Errorf("apt-get names %d packages for %q", len(exact), names)
	}
	_, err = run(ctx, dir, "apt-get", append(append(slices.Clone(options), "download"), exact...)...)
	return err
}

// run runs a program in dir and returns what it printed.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// kernelFiles are a kernel in its store.
type kernelFiles struct {
	store  *kernel.Store
	boot   kernel.Boot
	source string
}

// kernel finds the kernel in the cache, or fetches it.
func (o *Options) kernel(ctx context.Context) (*kernelFiles, error) {
	s, err := kernel.Open(kernel.Options{Dir: filepath.Join(o.Cache, "kernels")})
	if err != nil {
		return nil, err
	}
	var k *api.Kernel
	if o.Kernel == "" {
		k, err = s.Get(api.KindVM, "amd64", "")
		if err != nil || o.Fresh {
			o.Tell("fetching a kernel")
			k, err = s.Fetch(ctx, api.KernelFetch{Kind: api.KindVM, Arch: "amd64", Distribution: "debian"}, func(string, int64, int64) {})
		}
	} else {
		k, err = o.otherKernel(ctx, s)
	}
	if err != nil {
		return nil, err
	}
	boot, err := s.Files(k.Name)
	return &kernelFiles{s, boot, k.Source}, err
}

// otherKernel is one of a package that was asked for by name.
func (o *Options) otherKernel(ctx context.Context, s *kernel.Store) (*api.Kernel, error) {
	for _, k := range s.List() {
		if k.Kind == api.KindVM && strings.HasPrefix(k.Source, "package "+o.Kernel+" ") {
			return &k, nil
		}
	}
	o.Tell("fetching " + o.Kernel)
	temp, err := os.MkdirTemp(o.Cache, temporary)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	if _, err := run(ctx, temp, "apt-get", "download", o.Kernel); err != nil {
		return nil, err
	}
	debs := debsIn(temp)
	if len(debs) != 1 {
		return nil, fmt.Errorf("apt-get download %s left %d packages", o.Kernel, len(debs))
	}
	return s.Add(ctx, api.KernelAdd{Kind: api.KindVM, Image: debs[0]})
}

// Guest writes an initramfs for a guest of the appliance's kernel, as
// kernel.Store.Archive does, and returns the kernel.
func (o *Options) Guest(ctx context.Context, initramfs io.Writer, files map[string][]byte, modules ...string) (image string, err error) {
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return "", err
	}
	lock, err := lockDir(ctx, o.Cache)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	k, err := o.kernel(ctx)
	if err != nil {
		return "", err
	}
	return k.boot.Image, k.store.Archive(initramfs, k.boot.Name, files, modules...)
}

// busyboxPath is where busybox is in the root.
const busyboxPath = "usr/libexec/cleave/busybox"

// applets are the programs that a busybox is, by their paths below /usr.
func applets(ctx context.Context, busybox string) ([]string, error) {
	out, err := run(ctx, "", busybox, "--list-full")
	if err != nil {
		return nil, err
	}
	var list []string
	for name := range strings.FieldsSeq(out) {
		dir, base := path.Dir(name), path.Base(name)
		// Others, like linuxrc, are for another kind of root.
		if strings.HasSuffix(dir, "bin") && base != "busybox" {
			list = append(list, path.Join("usr", path.Base(dir), base))
		}
	}
	slices.Sort(list)
	return append(slices.Compact(list), "usr/bin/busybox"), nil
}
