package image

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// record is what the store keeps of an image, beside its root.
type record struct {
	Image api.Image `json:"image"` // without Names: those are in names.json
	// Root names the EROFS file; images of the same layers share it.
	Root string `json:"root,omitempty"`
	// Disk names the raw file of a disk or medium, which has no root.
	Disk string `json:"disk,omitempty"`
	// Config is the image's own configuration document.
	Config json.RawMessage `json:"config"`
}

const (
	dirRoots  = "roots"
	dirDisks  = "disks"
	dirImages = "images"
	dirBlobs  = "blobs"
	dirTmp    = "tmp"
	fileNames = "names.json"
	fileLock  = "lock"
)

func (s *Store) dir(name string) string { return filepath.Join(s.opts.Dir, name) }

func (s *Store) rootPath(root string) string {
	return filepath.Join(s.dir(dirRoots), strings.TrimPrefix(root, "sha256:")+".erofs")
}

func (s *Store) diskPath(disk string) string {
	return filepath.Join(s.dir(dirDisks), strings.TrimPrefix(disk, "sha256:")+".raw")
}

// content is the large file of an image.
func (s *Store) content(rec *record) (name, path string) {
	if rec.Disk != "" {
		return rec.Disk, s.diskPath(rec.Disk)
	}
	return rec.Root, s.rootPath(rec.Root)
}

func (s *Store) recordPath(digest string) string {
	return filepath.Join(s.dir(dirImages), strings.TrimPrefix(digest, "sha256:")+".json")
}

// load reads the records and names. What a crash left without its other half
// is removed; what is damaged is removed too, with a word in the log: the
// image can be pulled again.
func (s *Store) load() error {
	files, err := os.ReadDir(s.dir(dirImages))
	if err != nil {
		return err
	}
	for _, f := range files {
		path := filepath.Join(s.dir(dirImages), f.Name())
		var rec record
		err := readJSON(path, &rec)
		if err == nil {
			err = s.checkRecord(path, &rec)
		}
		if err != nil {
			s.log.Warn("image record removed", "file", path, "error", err)
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		s.images[rec.Image.Digest] = &rec
	}
	names := map[string]string{}
	if err := readJSON(s.dir(fileNames), &names); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("image names lost", "error", err)
	}
	for key, digest := range names {
		if s.images[digest] != nil {
			s.names[s.key(nameOf(key), digest)] = digest
		}
	}
	_, err = s.sweep()
	return err
}

func (s *Store) checkRecord(path string, rec *record) error {
	if s.recordPath(rec.Image.Digest) != path {
		return errors.New("the file isn't named after its digest")
	}
	_, path = s.content(rec)
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case rec.Disk != "":
		if st.Size() != int64(rec.Image.DiskSize) {
			return errors.New("its raw file is cut off")
		}
	case st.Size()%4096 != 0 || st.Size() == 0:
		return errors.New("its EROFS file is cut off")
	}
	return nil
}

// sweep removes roots and disks that no image has. The caller holds s.mu or
// is alone.
func (s *Store) sweep() (freed api.Bytes, err error) {
	used := map[string]bool{}
	for _, rec := range s.images {
		_, path := s.content(rec)
		used[path] = true
	}
	for name := range s.held {
		used[s.rootPath(name)], used[s.diskPath(name)] = true, true
	}
	for _, dir := range []string{s.dir(dirRoots), s.dir(dirDisks)} {
		files, err := os.ReadDir(dir)
		if err != nil {
			return freed, err
		}
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if used[path] {
				continue
			}
			size := diskSize(path)
			if err := os.Remove(path); err != nil {
				return freed, err
			}
			freed += size
		}
	}
	return freed, nil
}

// saveNames writes the names; the caller holds s.mu.
func (s *Store) saveNames() error { return s.writeJSON(s.dir(fileNames), s.names) }

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file as a whole.
func (s *Store) writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir(dirTmp), "json-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(b); err != nil {
		f.Close()
		return err
	}
	return publish(f, path)
}

// publish gives a finished temporary file its name: after a crash it is there
// whole or not at all. It closes the file.
func publish(f *os.File, path string) error {
	err := f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func diskSize(path string) api.Bytes {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return allocated(st)
}
