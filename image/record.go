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
	Root string `json:"root"`
	// Config is the image's own configuration document.
	Config json.RawMessage `json:"config"`
}

const (
	dirRoots  = "roots"
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
	for name, digest := range names {
		if s.images[digest] != nil {
			s.names[name] = digest
		}
	}
	_, err = s.sweepRoots()
	return err
}

func (s *Store) checkRecord(path string, rec *record) error {
	if s.recordPath(rec.Image.Digest) != path {
		return errors.New("the file isn't named after its digest")
	}
	st, err := os.Stat(s.rootPath(rec.Root))
	if err != nil {
		return err
	}
	if st.Size()%4096 != 0 || st.Size() == 0 {
		return errors.New("its EROFS file is cut off")
	}
	return nil
}

// sweepRoots removes EROFS files that no image has. The caller holds s.mu or
// is alone.
func (s *Store) sweepRoots() (freed api.Bytes, err error) {
	used := map[string]bool{}
	for _, rec := range s.images {
		used[s.rootPath(rec.Root)] = true
	}
	for root := range s.held {
		used[s.rootPath(root)] = true
	}
	files, err := os.ReadDir(s.dir(dirRoots))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		path := filepath.Join(s.dir(dirRoots), f.Name())
		if used[path] {
			continue
		}
		size := diskSize(path)
		if err := os.Remove(path); err != nil {
			return freed, err
		}
		freed += size
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
