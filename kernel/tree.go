package kernel

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/image/erofs"
)

// tree is a directory of modules that is being written as one EROFS file,
// so that one copy serves the initramfs and, as a disk, the guests.
type tree struct {
	file  *os.File
	w     *erofs.Writer
	root  *erofs.Inode
	dirs  map[string]*erofs.Inode
	files map[string]*erofs.Inode
	buf   []byte
}

func newTree(f *os.File) *tree {
	root := directory()
	return &tree{
		file: f, w: erofs.NewWriter(f), root: root, buf: make([]byte, 256<<10),
		dirs: map[string]*erofs.Inode{".": root}, files: map[string]*erofs.Inode{},
	}
}

// epoch is the time of all files, so that the same modules give the same
// bytes.
var epoch = time.Unix(0, 0)

func directory() *erofs.Inode { return &erofs.Inode{Mode: unix.S_IFDIR | 0o755, Mtime: epoch} }

// put stores a file of size bytes under a path relative to the root.
func (t *tree) put(name string, r io.Reader, size int64) error {
	if !fs.ValidPath(name) || name == "." || len(path.Base(name)) > erofs.MaxName {
		return fmt.Errorf("a module can't be named %q", name)
	}
	if t.files[name] != nil || t.dirs[name] != nil {
		return fmt.Errorf("there is a second %s", name)
	}
	dir, err := t.dir(path.Dir(name))
	if err != nil {
		return err
	}
	data, err := t.w.Store(r, size, t.buf)
	if err != nil {
		return err
	}
	inode := &erofs.Inode{Mode: unix.S_IFREG | 0o644, Mtime: epoch, Data: data}
	t.files[name] = inode
	dir.Entries = append(dir.Entries, erofs.Entry{Name: path.Base(name), Inode: inode})
	return nil
}

func (t *tree) dir(name string) (*erofs.Inode, error) {
	if d := t.dirs[name]; d != nil {
		return d, nil
	}
	if t.files[name] != nil || len(path.Base(name)) > erofs.MaxName {
		return nil, fmt.Errorf("%s can't be a directory of modules", name)
	}
	parent, err := t.dir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	d := directory()
	t.dirs[name] = d
	parent.Entries = append(parent.Entries, erofs.Entry{Name: path.Base(name), Inode: d})
	return d, nil
}

// text stores a file of lines.
func (t *tree) text(name string, content []byte) error {
	return t.put(name, strings.NewReader(string(content)), int64(len(content)))
}

// open reads a file back.
func (t *tree) open(name string) io.Reader { return t.w.Open(t.files[name].Data) }

// modules are the paths of the modules, sorted.
func (t *tree) modules() []string {
	var list []string
	for name := range t.files {
		if isModule(name) {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// finish completes the file.
func (t *tree) finish() error {
	_, err := t.w.Finish(t.root, [16]byte{})
	return err
}

// copyDir puts the files below a directory of the host.
func (t *tree) copyDir(ctx context.Context, dir string) error {
	return fs.WalkDir(os.DirFS(dir), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if leftOut(name) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !e.Type().IsRegular() {
			return nil
		}
		f, err := os.OpenFile(path.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() {
			return err
		}
		return t.put(name, f, st.Size())
	})
}

// leftOut tells what of a directory of modules is for debuggers and
// compilers, or is a copy of the kernel.
func leftOut(name string) bool {
	top, _, _ := strings.Cut(name, "/")
	return slices.Contains([]string{"build", "source", "vdso", "vmlinuz", "vmlinux", "System.map", "config", "initrd"}, top)
}
