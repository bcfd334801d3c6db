package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Add takes a kernel from files of the host.
func (s *Store) Add(ctx context.Context, in api.KernelAdd) (*api.Kernel, error) {
	if err := in.Validate(); err != nil {
		return nil, err
	}
	source := in.Image
	if in.Image == api.KernelOfHost {
		var err error
		if in.Image, in.Modules, err = runningKernel("/"); err != nil {
			return nil, err
		}
		source = "the host: " + in.Image
	}
	f, err := openFile(in.Image)
	if err != nil {
		return nil, api.Errorf(api.CodeNotFound, "the kernel's file: %w", err).WithField("image")
	}
	defer f.Close()
	return s.add(ctx, f, in, source, false)
}

// Import is Add of a package or a kernel that comes as a stream; of in it
// takes Name, Kind and Default.
func (s *Store) Import(ctx context.Context, r io.Reader, in api.KernelAdd) (*api.Kernel, error) {
	in.Image, in.Modules = api.KernelOfHost, "" // whose files are not looked at
	if err := in.Validate(); err != nil {
		return nil, err
	}
	in.Image = ""
	return s.add(ctx, r, in, "an upload", false)
}

// add makes a kernel of a package or a kernel's file and, if in says so, of
// modules of the host.
func (s *Store) add(ctx context.Context, r io.Reader, in api.KernelAdd, source string, replace bool) (*api.Kernel, error) {
	d, err := s.newDraft()
	if err != nil {
		return nil, s.fullDisk(err)
	}
	defer d.close()
	rec, err := d.build(ctx, r, in, source)
	if err != nil {
		return nil, s.failed(ctx, err)
	}
	if in.Kind != "" && in.Kind != rec.Kernel.Kind {
		return nil, api.Errorf(api.CodeInvalid, "kernel %s is for kind %s, and not for %s", rec.Kernel.Name, rec.Kernel.Kind, in.Kind).WithField("kind")
	}
	if err := d.check(rec); err != nil {
		return nil, err
	}
	return s.publish(d, rec, in.Default, replace)
}

// failed gives an error the code that fits: what can't be read is at fault
// unless the disk is.
func (s *Store) failed(ctx context.Context, err error) error {
	var coded *api.Error
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &coded):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return s.fullDisk(err)
	case ctx.Err() != nil, errors.As(err, &pathErr):
		return err
	}
	return api.Errorf(api.CodeInvalid, "%w", err).WithHint("give a .deb package of a kernel, a kernel's file with its modules' directory, or host")
}

func (d *draft) build(ctx context.Context, r io.Reader, in api.KernelAdd, source string) (*record, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	if head, _ := br.Peek(len(arMagic)); string(head) == arMagic {
		pkg, err := d.addDeb(ctx, br)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		source = pkg
	} else {
		if err := d.addImage(source, br); err != nil {
			return nil, err
		}
		if in.Modules == "" && in.Image != "" {
			in.Modules = installedModules(d.hdr)
		}
	}
	if in.Modules != "" {
		if err := d.addModules(ctx, in.Modules); err != nil {
			return nil, err
		}
	}
	return d.finish(ctx, in.Name, source)
}

// addModules takes modules from a directory of the host, or from a package:
// some distributions have them in one of their own.
func (d *draft) addModules(ctx context.Context, name string) error {
	if strings.HasSuffix(name, ".deb") {
		f, err := openFile(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := d.addDeb(ctx, f); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}
	dir, err := filepath.EvalSymlinks(name)
	if err != nil {
		return err
	}
	release := filepath.Base(dir)
	if d.hdr.release != "" && !releaseRE.MatchString(release) {
		release = d.hdr.release // a directory of any name, with what is needed in it
	}
	t, err := d.modules(release)
	if err != nil {
		return err
	}
	if err := t.copyDir(ctx, dir); err != nil {
		return err
	}
	if len(t.modules()) == 0 && t.files["modules.builtin"] == nil {
		return api.Errorf(api.CodeInvalid, "there are no modules in %s", name).WithField("modules").
			WithHint("give the directory that holds modules.dep, like /lib/modules/RELEASE")
	}
	return nil
}

// installedModules is the directory of a kernel's modules if it is installed
// on the host.
func installedModules(h *header) string {
	dir := filepath.Join("/lib/modules", h.release)
	if st, err := os.Stat(dir); h.release == "" || err != nil || !st.IsDir() {
		return ""
	}
	return dir
}

// check makes sure that the kernel has what its kind of machine needs, so
// that it is refused now and not when a guest starts.
func (d *draft) check(r *record) error {
	if d.mods == nil {
		return nil
	}
	_, err := plan(filepath.Join(d.dir, fileModules), r)
	return err
}

// openFile opens a regular file of the host, never waiting for what is none.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// runningKernel finds the files of the kernel that runs this host, whose
// root is at root.
func runningKernel(root string) (image, modules string, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", "", err
	}
	release := unix.ByteSliceToString(u.Release[:])
	tried := []string{"boot/vmlinuz-" + release, "lib/modules/" + release + "/vmlinuz", "usr/lib/modules/" + release + "/vmlinuz"}
	for _, p := range tried {
		p = filepath.Join(root, p)
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() {
			continue
		}
		modules = filepath.Join(root, "lib/modules", release)
		if _, err := os.Stat(modules); err != nil {
			return "", "", api.Errorf(api.CodeNotFound, "the running kernel's modules: %w", err)
		}
		return p, modules, nil
	}
	return "", "", api.Errorf(api.CodeNotFound, "the running kernel %s has no file at /%s", release, strings.Join(tried, ", /")).
		WithHint("give another one: `cleave kernel fetch debian`, or `cleave kernel add FILE.deb`")
}
