package image

import (
	"io/fs"
	"os"
	"path"

	goerofs "github.com/erofs/go-erofs"
)

// rootReader reads a root that the store has written.
type rootReader struct {
	fs.FS
	file *os.File
}

func openRoot(name string) (*rootReader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	tree, err := goerofs.Open(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &rootReader{tree, f}, nil
}

func (r *rootReader) Close() error { return r.file.Close() }

// follow returns where a path leads through symbolic links, or the path
// itself.
func (r *rootReader) follow(name string) string {
	at := path.Clean("/" + name)
	for range 40 {
		target, err := fs.ReadLink(r.FS, at[1:])
		if err != nil {
			return at
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(at), target)
		}
		at = path.Clean("/" + target)
	}
	return at
}
