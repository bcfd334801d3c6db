package guest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// paxXattr is how tar streams call extended attributes (star's invention,
// which all tools follow).
const paxXattr = "SCHILY.xattr."

// addXattrs puts the attributes of fd into h. SELinux labels follow the policy
// of where a file is, not the file.
func (a *archiver) addXattrs(h *tar.Header, fd int) {
	var small [256]byte
	list := small[:]
	n, err := unix.Flistxattr(fd, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = unix.Flistxattr(fd, list)
	}
	if err != nil || n == 0 {
		return // a file system without attributes
	}
	for raw := range bytes.SplitSeq(list[:n], []byte{0}) {
		name := string(raw)
		if name == "" || name == "security.selinux" {
			continue
		}
		value := a.buf[:64<<10] // XATTR_SIZE_MAX
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil || strings.Contains(name, "=") {
			a.left.add(fmt.Sprintf("attribute %s of %s", name, h.Name))
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[paxXattr+name] = string(value[:n])
	}
}

// setXattrs gives fd the attributes in h. What the guest may not set, or its
// file system can't hold, is left out.
func setXattrs(fd int, h *tar.Header, left *leftOut) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		switch {
		case err == nil:
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			left.add(fmt.Sprintf("attribute %s of %s", name, h.Name))
		default:
			return err
		}
	}
	return nil
}

// leftOut collects what a copy can't carry. The copy goes on, and ends with
// an error that says so.
type leftOut struct {
	count int
	some  []string
}

// listed is how many are named.
const listed = 8

func (l *leftOut) add(what string) {
	l.count++
	if len(l.some) < listed {
		l.some = append(l.some, what)
	}
}

func (l *leftOut) err(format string, args ...any) error {
	if l.count == 0 {
		return nil
	}
	some := slices.Clone(l.some)
	if more := l.count - len(some); more > 0 {
		some = append(some, fmt.Sprintf("%d more", more))
	}
	return api.Errorf(api.CodeUnsupported, "%s: left out %s; all else was copied",
		fmt.Sprintf(format, args...), strings.Join(some, ", "))
}
