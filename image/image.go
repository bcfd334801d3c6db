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

	"github.com/cleave-project/cleave/api"
)

// Progress is told how far long work has come. It must not block.
type Progress func(step string, done, total int64)

// Keeper is asked before garbage is collected: the digests in use.
type InUse func(ctx context.Context) (map[string]bool, error)

var (
	_ = context.Background
	_ io.Reader
	_ api.Image
)
