// Package layer carries the writable layer of an overlay (its upper
// directory) from one place to another, as a stream: the same layer over the
// same image is the same tree, whoever mounts it. What deletes and replaces
// files of the image goes with it as the kernel has it in the layer
// (Documentation/filesystems/overlayfs.rst): whiteouts as devices 0/0, opaque
// and renamed directories as attributes.
//
// The stream is a tar archive in PAX format, with records of our own for what
// tar has no words for. It is read from a tree, and written into an empty
// directory, that nobody else writes to meanwhile; yet both the tree and the
// stream are hostile. No name is ever resolved but one component at a time,
// without following links.
package layer

// Records of entries. Others are "SCHILY.xattr." and an attribute's name, and
// recordXattr where a name has what PAX can't express.
const (
	recordSocket = "CLEAVE.socket" // the entry is a socket and no FIFO
	recordSparse = "CLEAVE.sparse" // the file's length; its content are extents
	recordXattr  = "CLEAVE.xattr." // and the attribute's name in hexadecimal
	paxXattr     = "SCHILY.xattr."
)

// deepest is how far below its root a layer may go. Each level takes a
// descriptor.
const deepest = 1000

// extentHeader is what is before each extent of a sparse file: offset and
// length, big endian.
const extentHeader = 16
