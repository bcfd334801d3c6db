package appliance

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/image/erofs"
	"github.com/cleave-project/cleave/image/rootfs"
)

// Options say what an image is made of.
type Options struct {
	// Dir gets images; Cache keeps packages and kernels, and may be shared.
	Dir, Cache string
	// Bin holds our programs, and a static busybox.
	Bin string
	// Kernel is a package with a kernel; Debian's for virtual machines if
	// empty.
	Kernel string
	// Fresh asks the package sources what is new, instead of taking what was
	// fetched before.
	Fresh bool
	// Tell hears what takes long; may be nil.
	Tell func(step string)
}

// Image is one that was built. Later ones leave it where it is until it is
// closed.
type Image struct {
	used *os.File // holds a shared lock

	Dir      string   `json:"-"`
	Release  string   `json:"release"` // of the kernel
	Packages []string `json:"packages"`
	Programs []string `json:"programs"` // with their digests
}

// Files of an image.
const (
	fileKernel    = "kernel"
	fileInitramfs = "initramfs"
	fileRoot      = "root.erofs"
	fileModules   = "modules.erofs"
	fileRecord    = "appliance.json"
)

// Kernel is the path of the bootable kernel.
func (i *Image) Kernel() string { return filepath.Join(i.Dir, fileKernel) }

// Initramfs is the path of the initramfs.
func (i *Image) Initramfs() string { return filepath.Join(i.Dir, fileInitramfs) }

// Root is the path of the root's EROFS.
func (i *Image) Root() string { return filepath.Join(i.Dir, fileRoot) }

// Modules is the path of the EROFS of modules.
func (i *Image) Modules() string { return filepath.Join(i.Dir, fileModules) }

// Close lets the image be removed when there are newer ones.
func (i *Image) Close() error { return i.used.Close() }

// programs of ours, and where they are in the root.
var programs = map[string]string{
	"cleave": "usr/bin/cleave", "cleaved": "usr/bin/cleaved", "cleave-vmm": "usr/bin/cleave-vmm",
	"cleave-keeper": "usr/libexec/cleave/cleave-keeper", "cleave-agent": "usr/libexec/cleave/cleave-agent",
	"cleave-probe": "usr/libexec/cleave/cleave-probe", "busybox": "usr/libexec/cleave/busybox",
}

//go:embed root
var own embed.FS

// layout changes with what this package makes of the same parts.
const layout = "1"

// maxRoot bounds what packages unpack to.
const maxRoot = 1 << 30

// temporary begins the names of what isn't complete.
const temporary = ".new-"

// Build makes the image, unless it is there.
func Build(ctx context.Context, o Options) (*Image, error) {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	for _, d := range []string{o.Dir, o.Cache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("build the appliance: %w", err)
		}
	}
	lock, err := lockDir(ctx, o.Cache)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	debs, err := o.packages(ctx)
	if err != nil {
		return nil, fmt.Errorf("packages of the appliance: %w", err)
	}
	k, err := o.kernel(ctx)
	if err != nil {
		return nil, fmt.Errorf("kernel of the appliance: %w", err)
	}
	img := &Image{Release: k.boot.Version}
	for _, d := range debs {
		img.Packages = append(img.Packages, filepath.Base(d))
	}
	ours, err := o.programs(img)
	if err != nil {
		return nil, err
	}
	key, err := img.key(k)
	if err != nil {
		return nil, err
	}
	img.Dir = filepath.Join(o.Dir, hex.EncodeToString(key[:8]))
	if img.use() == nil {
		return img, nil
	}
	o.Tell("building the appliance")
	temp, err := os.MkdirTemp(o.Dir, temporary)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	if err := img.write(ctx, temp, &o, parts{debs, ours, k, key}); err != nil {
		return nil, fmt.Errorf("build the appliance: %w", err)
	}
	if err := os.RemoveAll(img.Dir); err != nil {
		return nil, err
	}
	if err := os.Rename(temp, img.Dir); err != nil {
		return nil, err
	}
	if err := img.use(); err != nil {
		return nil, err
	}
	o.prune(img)
	return img, nil
}

// use takes the image, if it is complete, so that it isn't removed.
func (i *Image) use() error {
	f, err := os.Open(filepath.Join(i.Dir, fileRecord))
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		f.Close()
		return fmt.Errorf("the appliance %s is being removed: %w", i.Dir, err)
	}
	i.used = f
	return nil
}

// prune removes images that nobody uses, and what interrupted builds left.
func (o *Options) prune(but *Image) {
	dirs, _ := os.ReadDir(o.Dir)
	for _, d := range dirs {
		dir := filepath.Join(o.Dir, d.Name())
		if !d.IsDir() || dir == but.Dir {
			continue
		}
		if strings.HasPrefix(d.Name(), temporary) {
			os.RemoveAll(dir)
			continue
		}
		f, err := os.Open(filepath.Join(dir, fileRecord))
		if err != nil {
			continue // it is none of ours
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}

// lockDir keeps others out of a directory, until the file is closed.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// Whoever has it fetches or builds, which ends.
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) || ctx.Err() != nil {
			break
		}
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// programs reads our programs, by their paths in the root.
func (o *Options) programs(img *Image) (map[string][]byte, error) {
	files := map[string][]byte{}
	for name, to := range programs {
		b, err := os.ReadFile(filepath.Join(o.Bin, name))
		if err != nil {
			return nil, fmt.Errorf("our programs: %w; make them with `make build`", err)
		}
		files[to] = b
		img.Programs = append(img.Programs, fmt.Sprintf("%s %x", name, sha256.Sum256(b)))
	}
	slices.Sort(img.Programs)
	return files, nil
}

// key is the digest of all that the image is made of.
func (i *Image) key(k *kernelFiles) (key [32]byte, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%q\n%q\n%s\n%s\n", layout, i.Packages, i.Programs, k.boot.Name, k.source)
	err = fs.WalkDir(own, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := own.ReadFile(path)
		fmt.Fprintf(h, "%s %q\n", path, b)
		return err
	})
	return [32]byte(h.Sum(nil)), err
}

// parts are what an image is made of.
type parts struct {
	debs   []string
	ours   map[string][]byte
	kernel *kernelFiles
	key    [32]byte
}

// write writes the files of the image.
func (i *Image) write(ctx context.Context, dir string, o *Options, p parts) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, f := range [][2]string{{p.kernel.boot.Image, fileKernel}, {p.kernel.boot.Modules, fileModules}} {
		if err := share(f[0], filepath.Join(dir, f[1])); err != nil {
			return err
		}
	}
	start, err := own.ReadFile("root/init")
	if err != nil {
		return err
	}
	var initramfs bytes.Buffer
	files := map[string][]byte{"init": start, "bin/busybox": p.ours[busyboxPath]}
	if err := p.kernel.store.Archive(&initramfs, p.kernel.boot.Name, files); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, fileInitramfs), initramfs.Bytes(), 0o644); err != nil {
		return err
	}
	if err := writeRoot(ctx, filepath.Join(dir, fileRoot), filepath.Join(o.Bin, "busybox"), p); err != nil {
		return err
	}
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileRecord), append(b, '\n'), 0o644)
}

// writeRoot merges packages, skeleton and programs into one file.
func writeRoot(ctx context.Context, file, busybox string, p parts) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	m := &merge{image: erofs.NewWriter(f), budget: rootfs.NewBudget(maxRoot), tree: rootfs.NewTree()}
	if err := m.add(ctx, skeleton(), nil); err != nil {
		return err
	}
	for _, deb := range p.debs {
		if err := m.addPackage(ctx, deb); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(deb), err)
		}
	}
	last, err := system(ctx, p.ours, busybox, func(name string) bool {
		inode, _ := m.tree.Lookup(name)
		return inode != nil
	})
	if err != nil {
		return err
	}
	if err := m.add(ctx, last, nil); err != nil {
		return err
	}
	if _, err := m.image.Finish(m.tree.Root(), [16]byte(p.key[:16])); err != nil {
		return err
	}
	if err := m.tree.Hidden(m.image.Discard); err != nil {
		return err
	}
	return f.Close()
}

// share links a file, or copies it to where it can't be linked.
func share(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
