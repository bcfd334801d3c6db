package transfer

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
)

// Pack writes the archive of a local file or directory; its names begin with
// top ("." for the contents of a directory alone). Without owner everything
// belongs to the guest's root. It returns the names that were left out.
func Pack(w io.Writer, source, top string, owner bool) (left []string, err error) {
	p := &packer{tar: tar.NewWriter(w), owner: owner, buf: make([]byte, 1<<20), seen: map[inode]string{}}
	err = filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		return p.add(file, path.Join(top, filepath.ToSlash(rel)))
	})
	if err != nil {
		return p.left, err
	}
	return p.left, p.tar.Close()
}

type inode struct{ dev, ino uint64 }

type packer struct {
	tar   *tar.Writer
	owner bool
	buf   []byte
	seen  map[inode]string // first name of files with several
	left  []string
}

func (p *packer) add(file, name string) error {
	fi, err := os.Lstat(file)
	if err != nil {
		return err
	}
	link := ""
	switch {
	case fi.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	case !fi.Mode().IsRegular() && !fi.IsDir():
		p.left = append(p.left, file)
		return nil
	}
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return err
	}
	h.Name, h.Format = name, tar.FormatPAX
	if fi.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", ""
	if !p.owner {
		h.Uid, h.Gid = 0, 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && fi.Mode().IsRegular() && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := p.seen[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tar.WriteHeader(h)
		}
		p.seen[id] = name
	}
	if err := p.tar.WriteHeader(h); err != nil || !fi.Mode().IsRegular() {
		return err
	}
	return p.content(file, h.Size)
}

// content writes as much of a file as its header said.
func (p *packer) content(file string, size int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{p.tar}, io.LimitReader(f, size), p.buf)
	if err == nil && n < size {
		err = fmt.Errorf("%s became shorter while it was read", file)
	}
	return err
}

// Rename copies an archive from one guest to another under another name: top
// is replaced by name.
func Rename(w io.Writer, r io.Reader, top, name string) error {
	u := &unpacker{top: top}
	in, out, buf := tar.NewReader(r), tar.NewWriter(w), make([]byte, 1<<20)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return out.Close()
		}
		if err != nil {
			return fmt.Errorf("reading the guest's archive: %w", err)
		}
		rel, err := u.below(h.Name)
		if err != nil {
			return err
		}
		h.Name = path.Join(name, rel)
		if h.Typeflag == tar.TypeDir {
			h.Name += "/"
		}
		if h.Typeflag == tar.TypeLink {
			if rel, err = u.below(h.Linkname); err != nil {
				return err
			}
			h.Linkname = path.Join(name, rel)
		}
		h.Format = tar.FormatPAX
		h.PAXRecords = nil // made anew from the fields
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{out}, in, buf); err != nil {
			return err
		}
	}
}
