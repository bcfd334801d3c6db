package rootfs

import (
	"strings"

	"github.com/cleave-project/cleave/image/erofs"
)

// Whiteouts (layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	// metaPrefix begins names that AUFS kept for itself; the opaque marker
	// is the only one with a meaning here.
	metaPrefix   = ".wh..wh."
	opaqueMarker = ".wh..wh..opq"
)

// cleanName returns the components of a name in an archive, joined by "/";
// "" is the root.
func cleanName(name string) (string, error) {
	if name == "" {
		return "", corrupt("a file without a name")
	}
	if strings.Contains(name, "\x00") {
		return "", corrupt("file name %.80q has a zero byte", name)
	}
	if len(name) > maxPath {
		return "", corrupt("file name %.80q... is longer than %d bytes", name, maxPath)
	}
	clean := make([]byte, 0, len(name))
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", corrupt("file name %.80q leads out of the archive", name)
		case len(part) > erofs.MaxName:
			return "", corrupt("file name %.80q has a part longer than %d bytes", name, erofs.MaxName)
		}
		if len(clean) > 0 {
			clean = append(clean, '/')
		}
		clean = append(clean, part...)
	}
	return string(clean), nil
}

// splitName returns the parent and the last component of a clean name.
func splitName(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

// whiteout tells what a clean name of a layer means: a whiteout of target, an
// opaque marker of its parent, something to ignore, or an ordinary file.
func whiteout(name string) (kind, target string, err error) {
	if !strings.Contains(name, whiteoutPrefix) {
		return "", "", nil
	}
	dir, base := splitName(name)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, metaPrefix) {
			return "ignore", "", nil
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return "", "", corrupt("%.80q has a whiteout as its parent", name)
		}
	}
	switch hidden, ok := strings.CutPrefix(base, whiteoutPrefix); {
	case !ok:
		return "", "", nil
	case base == opaqueMarker:
		return "opaque", dir, nil
	case strings.HasPrefix(base, metaPrefix):
		return "ignore", "", nil
	case hidden == "" || hidden == "." || hidden == "..":
		return "", "", corrupt("%.80q is no whiteout of anything", name)
	case dir == "":
		return "whiteout", hidden, nil
	default:
		return "whiteout", dir + "/" + hidden, nil
	}
}
