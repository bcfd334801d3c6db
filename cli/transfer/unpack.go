package transfer

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Target is where an archive goes.
type Target struct {
	Dir  string // an existing directory
	Name string // of the copy in it; "." copies the contents into Dir itself
	// Owner keeps the guest's numeric owners, which only root can.
	Owner bool
}

// Unpack extracts the archive of one file or directory, whose names begin
// with top. It returns the names that were left out, as they are nothing that
// a copy can hold.
func Unpack(r io.Reader, top string, to Target) (left []string, err error) {
	root, err := os.OpenRoot(to.Dir)
	if err != nil {
		return nil, err
	}
	u := &unpacker{tar: tar.NewReader(r), top: top, to: to, parent: root, buf: make([]byte, 1<<20), real: map[string]bool{".": true}}
	defer u.close()
	if err := u.run(); err != nil {
		return u.left, err
	}
	return u.left, u.finish()
}

type unpacker struct {
	tar    *tar.Reader
	top    string
	to     Target
	parent *os.Root
	root   *os.Root // of a directory's copy; nil before its first entry and for a file
	single bool     // the copy is a file, and here
	real   map[string]bool
	dirs   []*tar.Header // made here: mode and time are set last
	left   []string
	buf    []byte
}

func (u *unpacker) close() {
	u.parent.Close()
	if u.root != nil {
		u.root.Close()
	}
}

func (u *unpacker) run() error {
	for {
		h, err := u.tar.Next()
		switch {
		case err == io.EOF && u.root == nil && !u.single && len(u.left) == 0:
			return refused("an empty archive")
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("reading the guest's archive: %w", err)
		}
		rel, err := u.below(h.Name)
		if err != nil {
			return err
		}
		h.Name = rel
		if u.root == nil {
			err = u.first(h)
		} else {
			err = u.entry(u.root, h)
		}
		if err != nil {
			return err
		}
	}
}

// refused is an archive that an honest guest doesn't send.
func refused(format string, args ...any) error {
	return api.Errorf(api.CodeCorrupt, "refused what the guest sent: "+format, args...)
}

// below returns a name relative to top.
func (u *unpacker) below(name string) (string, error) {
	if path.IsAbs(name) || strings.ContainsRune(name, 0) {
		return "", refused("%q is no relative name", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refused("%q leads out of the copy", name)
		}
	}
	clean := path.Clean(name)
	switch rel, ok := strings.CutPrefix(clean, u.top+"/"); {
	case u.top == ".", clean == u.top && !ok:
		if clean == u.top {
			return ".", nil
		}
		return clean, nil
	case ok:
		return rel, nil
	}
	return "", refused("%q is not below %q", name, u.top)
}

// first takes the entry of what is copied itself.
func (u *unpacker) first(h *tar.Header) error {
	switch {
	case u.single:
		return refused("%q, after a file that was all", h.Name)
	case h.Name != ".":
		return refused("%q, before what it is in", h.Name)
	case h.Typeflag == tar.TypeLink:
		return refused("a link to nothing")
	case h.Typeflag != tar.TypeDir:
		u.single = true
		if u.to.Name == "." {
			return api.Errorf(api.CodeInvalid, "the source is no directory, so it has no contents to copy")
		}
		h.Name = u.to.Name
		return u.entry(u.parent, h)
	}
	if u.to.Name != "." {
		if err := u.mkdir(u.parent, u.to.Name, h); err != nil {
			return err
		}
	}
	sub, err := u.parent.OpenRoot(u.to.Name)
	u.root = sub
	return err
}

// mkdir makes a directory, or takes the one that is there, which keeps its
// mode and owner. A symbolic link to one is refused: an earlier copy may have
// planted it.
func (u *unpacker) mkdir(root *os.Root, name string, h *tar.Header) error {
	err := root.Mkdir(name, 0o700)
	if err == nil {
		u.dirs = append(u.dirs, h)
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	fi, err := root.Lstat(name)
	if err == nil && !fi.IsDir() {
		return api.Errorf(api.CodeConflict, "%s is no directory here, but one in the guest", path.Join(root.Name(), name)).WithHint("remove it first")
	}
	return err
}

func (u *unpacker) entry(root *os.Root, h *tar.Header) error {
	if err := u.checkParents(root, path.Dir(h.Name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		u.real[h.Name] = true
		return u.mkdir(root, h.Name, h)
	case tar.TypeReg:
		return u.file(root, h)
	case tar.TypeGNUSparse:
		return refused("%q is written as a sparse file", h.Name)
	case tar.TypeSymlink:
		return u.place(root, h.Name, func(tmp string) error {
			if err := root.Symlink(h.Linkname, tmp); err != nil {
				return err
			}
			return u.own(root, tmp, h)
		})
	case tar.TypeLink:
		old, err := u.below(h.Linkname)
		if err != nil {
			return err
		}
		if err := u.checkParents(root, path.Dir(old)); err != nil {
			return err
		}
		return u.place(root, h.Name, func(tmp string) error { return root.Link(old, tmp) })
	}
	u.left = append(u.left, h.Name)
	return nil
}

// checkParents refuses a path that leads through anything but directories.
func (u *unpacker) checkParents(root *os.Root, dir string) error {
	if root == u.parent || u.real[dir] {
		return nil
	}
	if err := u.checkParents(root, path.Dir(dir)); err != nil {
		return err
	}
	fi, err := root.Lstat(dir)
	switch {
	case err != nil:
		return refused("%q, before what it is in", dir)
	case !fi.IsDir():
		return refused("%q is in something that is no directory", dir)
	}
	u.real[dir] = true
	return nil
}

// file copies content. A sparse file would let a few bytes of archive fill
// the disk here; our agent writes none.
func (u *unpacker) file(root *os.Root, h *tar.Header) error {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return refused("%q is written as a sparse file", h.Name)
		}
	}
	return u.place(root, h.Name, func(tmp string) error {
		f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.CopyBuffer(struct{ io.Writer }{f}, u.tar, u.buf); err != nil {
			return err
		}
		if err := u.own(root, tmp, h); err != nil {
			return err
		}
		if err := f.Chmod(h.FileInfo().Mode().Perm()); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		return root.Chtimes(tmp, time.Time{}, h.ModTime)
	})
}

// place makes something under a name of its own and then moves it to its
// place, so that what was there is replaced in one step.
func (u *unpacker) place(root *os.Root, name string, make func(tmp string) error) error {
	tmp := path.Join(path.Dir(name), ".cleave-"+rand.Text())
	err := make(tmp)
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		_ = root.Remove(tmp)
		return fmt.Errorf("copying %s: %w", name, err)
	}
	u.real[name] = false // should it have been a directory before
	// Renaming one link of a file to another does nothing (rename(2)).
	if _, err := root.Lstat(tmp); err == nil {
		return root.Remove(tmp)
	}
	return nil
}

func (u *unpacker) own(root *os.Root, name string, h *tar.Header) error {
	if !u.to.Owner {
		return nil
	}
	return root.Lchown(name, h.Uid, h.Gid)
}

// finish sets what would have been in the way or changed again: the modes
// and times of directories, the innermost first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if err := u.own(u.root, h.Name, h); err != nil {
			return err
		}
		if err := u.root.Chmod(h.Name, h.FileInfo().Mode().Perm()); err != nil {
			return err
		}
		if err := u.root.Chtimes(h.Name, time.Time{}, h.ModTime); err != nil {
			return err
		}
	}
	return nil
}
