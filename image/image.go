// Package image brings images to this host and keeps them: from registries,
// archives, file trees and bootstrap tools, each merged into one read-only
// EROFS file, addressed by the digest of its manifest.
//
// The store is a directory; a file in it is either complete and verified or
// it isn't there under its name. All methods may be called at the same time;
// a second pull of the same image waits for the first and shares its work.
// Archives and manifests are hostile input: they are bounded, verified and
// never written to a path they choose.
package image

import (
	"context"
	"io"
	"log/slog"

	"github.com/cleave-project/cleave/api"
)

// Progress is told how far long work has come. It must not block.
type Progress func(step string, done, total int64)

// Options say where a store lives and what it may use.
type Options struct {
	Dir          string    // the store; made if absent
	Busybox      string    // static busybox for the built-in base image; empty: no base
	DockerConfig string    // Docker's config.json or its directory; empty: as Docker finds it
	MaxUnpacked  api.Bytes // of one image; 64 GiB if zero
	Log          *slog.Logger
}

// Store is the images of this host.
type Store struct {
	opts Options
}

// Open opens the store and removes what a crash left half done.
func Open(opts Options) (*Store, error) { return &Store{opts: opts}, nil }

// Close waits for work in progress, which it cancels.
func (s *Store) Close() error { return nil }

var errUnfinished = api.Errorf(api.CodeUnsupported, "images are not available yet")

// Pull brings an image from a registry.
func (s *Store) Pull(ctx context.Context, req api.ImagePull, p Progress) (*api.Image, error) {
	return nil, errUnfinished
}

// Import brings an image from an archive.
func (s *Store) Import(ctx context.Context, r io.Reader, name, platform string, p Progress) (*api.Image, error) {
	return nil, errUnfinished
}

// Build makes an image with the distribution's bootstrap tool.
func (s *Store) Build(ctx context.Context, req api.ImageBuild, p Progress) (*api.Image, error) {
	return nil, errUnfinished
}

// Get finds an image by name, digest or digest prefix.
func (s *Store) Get(ctx context.Context, ref string) (*api.Image, error) {
	return nil, errUnfinished
}

// EROFS is the path of an image's file.
func (s *Store) EROFS(digest string) string { return "" }

// List returns all images, sorted by name.
func (s *Store) List(ctx context.Context) ([]api.Image, error) { return nil, nil }

// Tag gives an image a further name.
func (s *Store) Tag(ctx context.Context, ref, name string) error { return errUnfinished }

// Untag takes a name away and keeps the image.
func (s *Store) Untag(ctx context.Context, name string) error { return errUnfinished }

// Delete removes a name, or an image with all its names.
func (s *Store) Delete(ctx context.Context, ref string, inUse map[string]bool) error {
	return errUnfinished
}

// Export writes an image as an archive.
func (s *Store) Export(ctx context.Context, ref, format string, w io.Writer) error {
	return errUnfinished
}

// Collect removes what nothing needs.
func (s *Store) Collect(ctx context.Context, inUse map[string]bool) (api.Bytes, []string, error) {
	return 0, nil, nil
}
