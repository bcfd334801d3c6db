package lab

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/image/erofs"
)

// writeFiles makes a read-only file system of files, by their paths in it.
func writeFiles(to string, files map[string]string) error {
	out, err := os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	w := erofs.NewWriter(out)
	dirs := map[string]*erofs.Inode{".": directory()}
	var dir func(name string) *erofs.Inode
	dir = func(name string) *erofs.Inode {
		if dirs[name] == nil {
			dirs[name] = directory()
			up := dir(path.Dir(name))
			up.Entries = append(up.Entries, erofs.Entry{Name: path.Base(name), Inode: dirs[name]})
		}
		return dirs[name]
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !fs.ValidPath(name) || name == "." || dirs[name] != nil {
			return fmt.Errorf("a file in a host can't be named %q", name)
		}
		inode, err := store(w, files[name])
		if err != nil {
			return err
		}
		in := dir(path.Dir(name))
		in.Entries = append(in.Entries, erofs.Entry{Name: path.Base(name), Inode: inode})
	}
	if _, err := w.Finish(dirs["."], [16]byte{1}); err != nil {
		return err
	}
	return out.Close()
}

func directory() *erofs.Inode {
	return &erofs.Inode{Mode: unix.S_IFDIR | 0o755, Mtime: time.Unix(0, 0)}
}

func store(w *erofs.Writer, file string) (*erofs.Inode, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data, err := w.Store(f, st.Size(), make([]byte, 256<<10))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &erofs.Inode{Mode: unix.S_IFREG | uint32(st.Mode().Perm()), Mtime: st.ModTime(), Data: data}, nil
}
