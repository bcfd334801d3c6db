package stockhost

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is a kernel with its modules.
type Kernel struct {
	Image   string // bzImage
	Modules string // directory /lib/modules/Release of it
	Release string
}

// FetchKernel finds a kernel package, or what the package depends on, in the
// cache; if it isn't there it is downloaded by apt-get and unpacked.
func FetchKernel(ctx context.Context, cache, pkg, busybox string) (*Kernel, error) {
	pkg, err := concrete(ctx, pkg)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, pkg)
	if k, err := unpacked(dir); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	temp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	if err := download(ctx, temp, pkg); err != nil {
		return nil, err
	}
	debs, _ := filepath.Glob(filepath.Join(temp, "*.deb"))
	if len(debs) != 1 {
		return nil, fmt.Errorf("download %s: got %d packages", pkg, len(debs))
	}
	root := filepath.Join(temp, "root")
	if _, err := run(ctx, temp, "dpkg", "-x", debs[0], root); err != nil {
		return nil, err
	}
	k, err := unpacked(root)
	if err != nil {
		return nil, err
	}
	if err := decompress(ctx, k.Modules); err != nil {
		return nil, err
	}
	// A package's modules are indexed where it is installed.
	if _, err := run(ctx, "", busybox, "depmod", "-b", root, k.Release); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(root, dir); err != nil {
		return nil, err
	}
	return unpacked(dir)
}

// decompress unpacks modules, which newer kernels have compressed and which
// busybox wants plain.
func decompress(ctx context.Context, dir string) error {
	args := []string{"--decompress"}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(path, ".ko.xz") {
			args = append(args, path)
		}
		return err
	})
	if err == nil && len(args) > 1 {
		_, err = run(ctx, "", "xz", args...)
	}
	return err
}

// concrete resolves a package that only depends on the newest kernel's.
func concrete(ctx context.Context, pkg string) (string, error) {
	out, err := run(ctx, "", "apt-cache", "depends", "--important", pkg)
	if err != nil {
		return "", fmt.Errorf("find a stock kernel: %w", err)
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name, nil
		}
	}
	return pkg, nil
}

func download(ctx context.Context, dir, pkg string) error {
	_, err := run(ctx, dir, "apt-get", "download", pkg)
	if err != nil {
		if _, err := run(ctx, dir, "apt-get", "update"); err != nil {
			return err
		}
		_, err = run(ctx, dir, "apt-get", "download", pkg)
	}
	return err
}

// unpacked is the kernel that a package put below root.
func unpacked(root string) (*Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if len(images) != 1 {
		return nil, fmt.Errorf("%s holds %d kernels, want one", root, len(images))
	}
	_, release, _ := strings.Cut(filepath.Base(images[0]), "-")
	modules := filepath.Join(root, "lib/modules", release)
	if _, err := os.Stat(modules); err != nil {
		return nil, err
	}
	return &Kernel{Image: images[0], Modules: modules, Release: release}, nil
}

// Files are modules and those they need, as files of an archive, and the order
// in which they can be loaded.
func (k *Kernel) Files(names ...string) (files map[string][]byte, order []string, err error) {
	needed, err := k.needed(names...)
	if err != nil {
		return nil, nil, err
	}
	files = map[string][]byte{}
	for _, m := range needed {
		name := "modules/" + filepath.Base(m)
		if files[name], err = os.ReadFile(filepath.Join(k.Modules, m)); err != nil {
			return nil, nil, err
		}
		order = append(order, name)
	}
	return files, order, nil
}

// needed lists the files of modules and of those they need, in an order in
// which they can be loaded. Names are as modules.dep has them.
func (k *Kernel) needed(names ...string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(k.Modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	builtin, err := os.ReadFile(filepath.Join(k.Modules, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, name := range names {
		found := bytes.Contains(builtin, []byte("/"+name+".ko\n"))
		for line := range strings.Lines(string(b)) {
			file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
			if filepath.Base(file) != name+".ko" {
				continue
			}
			found = true
			// What is needed first comes last.
			all := append([]string{file}, strings.Fields(needs)...)
			for _, f := range slices.Backward(all) {
				if !slices.Contains(files, f) {
					files = append(files, f)
				}
			}
		}
		if !found {
			return nil, fmt.Errorf("kernel %s has no module %s", k.Release, name)
		}
	}
	return files, nil
}

// run runs a program in dir and returns what it printed.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}
