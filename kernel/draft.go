package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/compress"
)

// maxKernel bounds a kernel's image, maxModules all modules together.
const (
	maxKernel  = 1 << 30
	maxModules = 4 << 30
)

// draft is a kernel on its way into the store: a directory that gets its
// name when everything is in it.
type draft struct {
	dir     string
	image   *os.File
	hdr     *header
	mods    *tree
	release string // of the modules' directory
	left    int64  // bytes of modules that are still accepted
}

func (s *Store) newDraft() (*draft, error) {
	dir, err := os.MkdirTemp(s.Dir, temporary)
	if err != nil {
		return nil, err
	}
	d := &draft{dir: dir, left: maxModules}
	if err := os.Chmod(dir, 0o755); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// close removes what was not published.
func (d *draft) close() {
	if d.image != nil {
		d.image.Close()
	}
	if d.mods != nil {
		d.mods.file.Close()
	}
	os.RemoveAll(d.dir)
}

func (d *draft) create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(d.dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
}

// addImage takes the kernel itself, and unpacks one that only firmware would.
// name is for messages.
func (d *draft) addImage(name string, r io.Reader) error {
	if d.image != nil {
		return api.Errorf(api.CodeInvalid, "there are two kernels, %s is the second", name).
			WithHint("give the file of the one that is wanted, and its modules by --modules")
	}
	f, h, err := d.takeImage(r)
	if err == nil && h.packed != nil {
		packed := f
		defer packed.Close()
		if err = os.Remove(packed.Name()); err == nil {
			f, h, err = d.unpackImage(h.packed)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.payload != nil {
		f, h = d.bare(f, h)
	}
	d.image, d.hdr = f, h
	return nil
}

// bare replaces a bzImage by the vmlinux in it, if that can be had and
// booted.
func (d *draft) bare(f *os.File, h *header) (*os.File, *header) {
	out, err := d.create(fileImage + ".bare")
	if err != nil {
		return f, h
	}
	inner, err := unpackPayload(out, h.payload)
	if err == nil && (inner.kind != h.kind || inner.arch != h.arch || inner.release != h.release) {
		err = errNoKernel
	}
	if err == nil {
		err = os.Rename(out.Name(), f.Name())
	}
	if err != nil {
		out.Close()
		_ = os.Remove(out.Name())
		return f, h
	}
	f.Close()
	return out, inner
}

func unpackPayload(out *os.File, payload *io.SectionReader) (*header, error) {
	z, err := unpacker(payload)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	n, err := io.Copy(out, io.LimitReader(z, maxKernel))
	if err != nil {
		return nil, err
	}
	return identify(out, n)
}

func (d *draft) takeImage(r io.Reader) (*os.File, *header, error) {
	f, err := d.create(fileImage)
	if err != nil {
		return nil, nil, err
	}
	n, err := io.Copy(f, io.LimitReader(r, maxKernel+1))
	if err == nil && n > maxKernel {
		err = fmt.Errorf("it is larger than %s", api.Bytes(maxKernel))
	}
	var h *header
	if err == nil {
		h, err = identify(f, n)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, h, nil
}

func (d *draft) unpackImage(packed io.Reader) (*os.File, *header, error) {
	z, _, err := compress.NewReader(packed)
	if err != nil {
		return nil, nil, err
	}
	defer z.Close()
	f, h, err := d.takeImage(z)
	if err == nil && h.packed != nil {
		f.Close()
		err = errors.New("it is compressed twice")
	}
	return f, h, err
}

// modules begins the modules of a release.
func (d *draft) modules(release string) (*tree, error) {
	if d.mods != nil && d.release != release {
		return nil, api.Errorf(api.CodeInvalid, "there are modules of two kernels, %s and %s", d.release, release)
	}
	if !releaseRE.MatchString(release) || len(release) > maxRelease {
		return nil, api.Errorf(api.CodeInvalid, "%q can't be the release of a kernel", release)
	}
	if d.mods == nil {
		f, err := d.create(fileModules)
		if err != nil {
			return nil, err
		}
		d.mods, d.release = newTree(f), release
	}
	return d.mods, nil
}

// addDeb takes a kernel, its modules, or both from a Debian package. It
// returns what the kernel's source is then.
func (d *draft) addDeb(ctx context.Context, r io.Reader) (string, error) {
	p, err := openDeb(r)
	if err != nil {
		return "", err
	}
	defer p.Close()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		h, err := p.Next()
		if err == io.EOF {
			return packageSource(p.Package, p.Version), nil
		}
		if err != nil {
			return "", fmt.Errorf("a damaged package: %w", err)
		}
		if !h.FileInfo().Mode().IsRegular() {
			continue
		}
		if err := d.addFile(path.Clean("/" + h.Name)[1:], p, h.Size); err != nil {
			return "", err
		}
	}
}

// moduleDirs are where packages have the directory RELEASE of their modules.
var moduleDirs = []string{"lib/modules/", "usr/lib/modules/", "usr/lib/uml/modules/"}

// addFile takes a file of a package if it belongs to a kernel.
func (d *draft) addFile(name string, r io.Reader, size int64) error {
	dir, base := path.Split(name)
	switch {
	case dir == "boot/" && (strings.HasPrefix(base, "vmlinuz-") || strings.HasPrefix(base, "vmlinux-") || strings.HasPrefix(base, "Image-")),
		name == "usr/bin/linux.uml", name == "usr/bin/linux":
		return d.addImage("/"+name, r)
	}
	for _, dir := range moduleDirs {
		release, rel, ok := strings.Cut(strings.TrimPrefix(name, dir), "/")
		if !ok || !strings.HasPrefix(name, dir) || leftOut(rel) {
			continue
		}
		t, err := d.modules(release)
		if err != nil {
			return err
		}
		if d.left -= size; d.left < 0 {
			return api.Errorf(api.CodeInvalid, "the modules are larger than %s", api.Bytes(maxModules))
		}
		return t.put(rel, r, size)
	}
	return nil
}

// finish completes the files and the record.
func (d *draft) finish(ctx context.Context, name, source string) (*record, error) {
	if d.image == nil {
		return nil, api.Errorf(api.CodeInvalid, "there is no kernel in it, neither /boot/vmlinuz-RELEASE nor /usr/bin/linux.uml").
			WithHint("if the package depends on another one, as linux-image-cloud-amd64 does, give that")
	}
	release := d.release
	switch {
	case release == "":
		release = d.hdr.release
	case d.hdr.release != "" && d.hdr.release != release:
		return nil, api.Errorf(api.CodeInvalid, "the kernel is %s and its modules are of %s", d.hdr.release, release).
			WithHint("modules load into their own kernel only")
	}
	if release == "" {
		return nil, api.Errorf(api.CodeInvalid, "the kernel's file doesn't tell its release").WithHint("give its modules' directory by --modules; its name is the release")
	}
	r := &record{Kernel: api.Kernel{
		Name: name, Kind: d.hdr.kind, Arch: d.hdr.arch, Version: release, Source: source, Created: time.Now().UTC().Truncate(time.Second),
	}}
	if name == "" {
		r.Kernel.Name = defaultName(d.hdr.kind, release)
	}
	files := []*os.File{d.image}
	if d.mods != nil {
		if len(d.mods.modules()) > 0 && d.mods.files["modules.dep"] == nil {
			if err := d.mods.index(ctx); err != nil {
				return nil, err
			}
		}
		if err := d.mods.finish(); err != nil {
			return nil, err
		}
		files = append(files, d.mods.file)
	}
	if err := d.image.Chmod(map[api.Kind]os.FileMode{api.KindPVM: 0o755, api.KindVM: 0o644}[r.Kernel.Kind]); err != nil {
		return nil, err
	}
	return r, d.seal(r, files)
}

// seal writes the record, and everything to the disk.
func (d *draft) seal(r *record, files []*os.File) error {
	var err error
	if r.Digest, err = digestOf(files...); err != nil {
		return err
	}
	sizes := []*int64{&r.Image, &r.Modules}
	for i, f := range files {
		if err := f.Sync(); err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		*sizes[i] = st.Size()
	}
	r.Kernel.Size = api.Bytes(r.Image + r.Modules)
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(d.dir, fileRecord), append(b, '\n'))
}

// defaultName names a kernel after its release. Those of linux.uml say no
// more than a version, which others may have, too.
func defaultName(kind api.Kind, release string) string {
	if kind == api.KindPVM {
		return "uml-" + release
	}
	return release
}
