package erofs

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	xattrHeader = 12 // erofs_xattr_ibody_header
	xattrEntry  = 4  // erofs_xattr_entry
)

// xattrPrefixes are the name spaces that the format numbers (EROFS_XATTR_
// INDEX_*). The two ACLs are whole names.
var xattrPrefixes = []struct {
	prefix string
	index  byte
	whole  bool
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitXattr returns the index of a name's prefix and the rest.
func splitXattr(name string) (index byte, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if rest, found := strings.CutPrefix(name, p.prefix); found && p.whole == (rest == "") {
			return p.index, rest, true
		}
	}
	return 0, "", false
}

// ValidXattr tells whether an attribute can be kept.
func ValidXattr(x Xattr) error {
	_, rest, ok := splitXattr(x.Name)
	if !ok || len(rest) > 255 || len(x.Value) > 65535 || strings.Contains(x.Name, "\x00") {
		return fmt.Errorf("extended attribute %.64q (%d bytes) can't be kept", x.Name, len(x.Value))
	}
	return nil
}

func (i *Inode) measureXattrs() error {
	i.xattrs = 0
	if len(i.Xattrs) == 0 {
		return nil
	}
	slices.SortFunc(i.Xattrs, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	n := int64(xattrHeader)
	for _, x := range i.Xattrs {
		if err := ValidXattr(x); err != nil {
			return err
		}
		_, rest, _ := splitXattr(x.Name)
		n += roundUp(int64(xattrEntry+len(rest)+len(x.Value)), 4)
	}
	if n > MaxXattrs {
		return fmt.Errorf("%d bytes of extended attributes are more than the format allows", n)
	}
	i.xattrs = int(n)
	return nil
}

// xattrCount is i_xattr_icount: (bytes - header) / 4 + 1, 0 for none.
func (i *Inode) xattrCount() uint16 {
	if i.xattrs == 0 {
		return 0
	}
	return uint16((i.xattrs-xattrHeader)/4 + 1)
}

func (i *Inode) appendXattrs(b []byte) []byte {
	if i.xattrs == 0 {
		return b
	}
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, x := range i.Xattrs {
		index, rest, _ := splitXattr(x.Name)
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		for n := xattrEntry + len(rest) + len(x.Value); n%4 != 0; n++ {
			b = append(b, 0)
		}
	}
	return b
}
