// Package imagetest has what the tests of package image and its parts share:
// tar streams written as tables, mounts of EROFS files, and file trees as
// text that can be compared.
package imagetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// File is one entry of a tar stream. The zero Type is a regular file, or a
// directory if the name ends in a slash.
type File struct {
	Name   string
	Type   byte
	Body   string
	Link   string
	Mode   int64
	UID    int
	GID    int
	Time   time.Time
	Xattrs map[string]string
	Size   int64 // of the header, if not that of Body
	Major  int64
	Minor  int64
}

// Epoch is the time of files that say none.
var Epoch = time.Unix(1_600_000_000, 123_456_789)

// Tar writes files as a PAX stream.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Name, Typeflag: f.Type, Linkname: f.Link, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
			ModTime: f.Time, Format: tar.FormatPAX, Devmajor: f.Major, Devminor: f.Minor,
		}
		if h.ModTime.IsZero() {
			h.ModTime = Epoch
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(f.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(f.Body))
		}
		for k, v := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if f.Size != 0 {
			h.Size = f.Size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.Body); err != nil {
			t.Fatal(err)
		}
		if f.Size != 0 {
			return b.Bytes() // a header that lies can't be ended
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Mount mounts an EROFS file for the length of the test. Where the kernel
// can't, the test is skipped and says what is missing.
func Mount(t testing.TB, image string) string {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount(image, dir, "erofs", unix.MS_RDONLY, "")
	switch {
	case errors.Is(err, unix.ENOTBLK):
		t.Skip("mounting an EROFS file without a loop device needs Linux 6.12")
	case errors.Is(err, unix.ENODEV):
		t.Skip("this kernel has no EROFS")
	case errors.Is(err, unix.EPERM):
		t.Skip("mounting needs root")
	case err != nil:
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// Options say what of a tree is listed.
type Options struct {
	NoTimes  bool // of directories, which tools that unpack don't all restore
	NoDev    bool // leave out what is in /dev
	NoMtimes bool // of anything
}

// List returns a tree as one line per file, sorted: type and mode, owner,
// links, size, time, name, target, attributes, a digest of the content, and
// which names are one inode.
func List(t testing.TB, root string, o Options) []string {
	t.Helper()
	var lines []string
	inodes := map[uint64][]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if o.NoDev && strings.HasPrefix(name, "dev/") {
			return nil
		}
		line, ino, err := describe(path, name, o)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		lines = append(lines, line)
		if !d.IsDir() {
			inodes[ino] = append(inodes[ino], name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range inodes {
		if len(names) > 1 {
			slices.Sort(names)
			lines = append(lines, "one inode: "+strings.Join(names, " "))
		}
	}
	sort.Strings(lines)
	return lines
}

func describe(path, name string, o Options) (string, uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", 0, err
	}
	line := fmt.Sprintf("%q %06o %d:%d", name, st.Mode, st.Uid, st.Gid)
	dir := st.Mode&syscall.S_IFMT == syscall.S_IFDIR
	if !dir {
		line += fmt.Sprintf(" nlink %d size %d", st.Nlink, st.Size)
	}
	if !o.NoMtimes && !(dir && o.NoTimes) {
		line += fmt.Sprintf(" mtime %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", 0, err
		}
		line += fmt.Sprintf(" -> %q", target)
	case syscall.S_IFREG:
		f, err := os.Open(path)
		if err != nil {
			return "", 0, err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return "", 0, err
		}
		line += fmt.Sprintf(" sha %x", h.Sum(nil)[:8])
	}
	attrs, err := xattrs(path)
	return line + attrs, st.Ino, err
}

func xattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return "", err
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	out := ""
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		out += fmt.Sprintf(" %s=%x", name, value[:n])
	}
	return out, nil
}
