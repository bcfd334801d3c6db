package machine

import (
	"os"
	"path/filepath"
)

// PutInPlace gives a file that is on the disk its name, for good: after a crash
// either the whole of it is there or nothing.
func PutInPlace(f *os.File, path string) error {
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
