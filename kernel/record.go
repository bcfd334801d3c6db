package kernel

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Files of a kernel's directory. Those of the initramfs come beside them.
const (
	fileRecord   = "kernel.json"
	fileImage    = "image"
	fileModules  = "modules.erofs" // absent if it has none
	fileDefaults = "defaults.json" // of the store
)

// record is what the store keeps of a kernel.
type record struct {
	Kernel  api.Kernel `json:"kernel"` // without what the store knows by itself
	Digest  string     `json:"digest"` // of image and modules
	Image   int64      `json:"image"`  // their sizes
	Modules int64      `json:"modules"`
}

// load reads the record in dir and looks whether what it tells of is there.
func load(dir string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, fileRecord))
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if r.Kernel.Name != filepath.Base(dir) {
		return nil, fmt.Errorf("it is the record of a kernel %q", r.Kernel.Name)
	}
	for _, f := range []struct {
		name string
		size int64
	}{{fileImage, r.Image}, {fileModules, r.Modules}} {
		st, err := os.Stat(filepath.Join(dir, f.name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && f.size == 0:
		case err != nil:
			return nil, err
		case st.Size() != f.size:
			return nil, fmt.Errorf("%s has %d bytes of %d", f.name, st.Size(), f.size)
		}
	}
	return &r, nil
}

// writeFile writes a file as a whole: after a crash the old content is there,
// or the new one.
func writeFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(0o644)
	}
	return publish(f, path, err)
}

// publish gives a temporary file its name, unless err is set, and closes it.
func publish(f *os.File, path string, err error) error {
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// digestOf is the digest of files, told apart by their sizes.
func digestOf(files ...*os.File) (string, error) {
	h := sha256.New()
	for _, f := range files {
		st, err := f.Stat()
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d\n", st.Size())
		if _, err := io.Copy(h, io.NewSectionReader(f, 0, st.Size())); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// fullDisk gives an error its code when the store's disk has no room.
func (s *Store) fullDisk(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Errorf(api.CodeNoSpace, "the disk of %s is full: %w", s.Dir, err).
			WithHint("free space there; `cleave kernel delete` removes kernels that nothing uses")
	}
	return err
}
