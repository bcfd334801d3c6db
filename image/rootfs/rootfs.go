// Package rootfs merges the layers of an image (OCI image-spec layer.md)
// into one file tree. A layer is read from its tar stream by Read, which puts
// file contents straight into the EROFS image and keeps the rest in memory;
// layers may be read at the same time. Tree.Apply then lays them over one
// another in order, which touches no file content.
//
// Everything in an archive is hostile: names are resolved in the tree in
// memory only, never by the host. What the rules leave open is decided so:
//
//   - A leading "/" or "./" is what tar programs write and is dropped; "..",
//     NUL and names over 255 bytes make the image corrupt.
//   - A parent that is a symbolic link is followed inside the tree (a layer
//     that writes lib/x over an image with lib -> usr/lib means usr/lib/x,
//     as it does to other tools); ".." at the root stays there.
//   - A parent that is another kind of file makes the image corrupt.
//   - The last component of a name is never followed.
//   - Whiteouts hide what lower layers hold, never what their own layer
//     brings, in whatever order the two are written.
//   - Device nodes are left out: guests get their devices from the engine.
//     Names of kept attributes are security.capability, user.* and ACLs.
package rootfs

import (
	"sync/atomic"

	"github.com/cleave-project/cleave/api"
)

// Bounds of one image that no sane image meets.
const (
	maxEntries = 2_000_000
	maxNames   = 256 << 20 // bytes of paths, link targets and attributes
	maxPath    = 4096
	maxTarget  = 4095
	maxDepth   = 2048
	maxLinks   = 40      // symbolic links on one path, as in Linux
	maxSteps   = 1 << 27 // names looked at while merging
)

// Budget bounds what the layers of one image may add up to.
type Budget struct {
	max              int64
	stream, contents atomic.Int64
	entries, names   atomic.Int64
}

// NewBudget allows max unpacked bytes.
func NewBudget(max int64) *Budget { return &Budget{max: max} }

func (b *Budget) addStream(n int64) error   { return b.add(&b.stream, n) }
func (b *Budget) addContents(n int64) error { return b.add(&b.contents, n) }

func (b *Budget) add(counter *atomic.Int64, n int64) error {
	// Sizes in headers go up to 2^63: compare without overflow.
	if n < 0 || n > b.max || counter.Add(n) > b.max {
		return api.Errorf(api.CodeCorrupt, "the image unpacks to more than %v", api.Bytes(b.max)).
			WithHint("if that is what it should be, raise the limit of the daemon's image store")
	}
	return nil
}

func (b *Budget) addEntry(names int) error {
	if b.entries.Add(1) > maxEntries {
		return corrupt("more than %d files in one image", maxEntries)
	}
	if b.names.Add(int64(names)) > maxNames {
		return corrupt("more than %v of file names and attributes in one image", api.Bytes(maxNames))
	}
	return nil
}

func corrupt(format string, args ...any) *api.Error {
	return api.Errorf(api.CodeCorrupt, format, args...)
}
