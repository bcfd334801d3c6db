package image

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cleave-project/cleave/api"
)

// Delete removes a name, and the image when it was the last one. Given a
// digest it removes the image with all its names. An image whose digest is
// in inUse stays, and its last name with it.
func (s *Store) Delete(_ context.Context, ref string, inUse map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	digest, err := s.find(ref, "")
	if err != nil {
		return err
	}
	if key, ok := s.keyOf(ref, digest); ok && s.count(digest) > 1 {
		return s.untag(digest, func(k string) bool { return k == key })
	}
	if s.names[baseName] == digest {
		return s.untag(digest, every) // says why not
	}
	if inUse[digest] {
		return api.Errorf(api.CodeInUse, "image %s is used by an instance", ref).
			WithHint("delete the instances made from it first")
	}
	if err := s.untag(digest, every); err != nil {
		return err
	}
	_, err = s.remove(digest)
	return err
}

// count tells how many names an image has.
func (s *Store) count(digest string) (n int) {
	for _, d := range s.names {
		if d == digest {
			n++
		}
	}
	return n
}

// remove deletes an image's record, then its root or disk if no other image
// has it. Guests that run on it keep it open.
func (s *Store) remove(digest string) (api.Bytes, error) {
	rec := s.images[digest]
	if err := os.Remove(s.recordPath(digest)); err != nil && !os.IsNotExist(err) {
		return 0, within("delete image "+digest, err)
	}
	delete(s.images, digest)
	name, path := s.content(rec)
	if s.held[name] > 0 {
		return 0, nil
	}
	for _, other := range s.images {
		if same, _ := s.content(other); same == name {
			return 0, nil
		}
	}
	size := diskSize(path)
	if err := os.Remove(path); err != nil {
		return 0, within("delete image "+digest, err)
	}
	return size, nil
}

// Collect removes images that have no name and are not in use, and what
// interrupted pulls have kept for another try.
func (s *Store) Collect(_ context.Context, inUse map[string]bool) (freed api.Bytes, digests []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, digest := range slices.Sorted(maps.Keys(s.images)) {
		if inUse[digest] || s.count(digest) > 0 {
			continue
		}
		n, err := s.remove(digest)
		if err != nil {
			return freed, digests, err
		}
		freed += n
		digests = append(digests, digest)
	}
	n, err := s.sweep()
	freed += n
	if err != nil {
		return freed, digests, within("remove unused files", err)
	}
	n, err = s.blobs.collect()
	return freed + n, digests, err
}

// collect removes the blobs that no pull holds.
func (b *blobs) collect() (freed api.Bytes, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	files, err := os.ReadDir(b.dir)
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		path := filepath.Join(b.dir, f.Name())
		if b.open["sha256:"+f.Name()] != nil {
			continue
		}
		freed += diskSize(path)
		if err := os.Remove(path); err != nil {
			return freed, err
		}
	}
	return freed, nil
}
