package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// account is whom a command runs as.
type account struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	name     string   // empty if the guest has no entry for uid
	home     string
}

// Bounds on what is read from a guest's own files: that of the kernel for
// groups (NGROUPS_MAX), and one that no real line comes near.
const (
	maxGroups = 65536
	maxLine   = 1 << 20
)

// accounts is where users and groups are looked up; tests have their own.
type accounts struct{ passwd, group string }

var etc = accounts{"/etc/passwd", "/etc/group"}

// find resolves USER or UID with an optional :GROUP or :GID, as the user
// field of an OCI image does: a number needs no entry; without an entry the
// group is 0; a given group replaces the supplementary ones too. A missing
// file is an empty one. Empty means root.
func (a accounts) find(spec string) (account, error) {
	user, group, hasGroup := strings.Cut(spec, ":")
	acc := account{home: "/"}
	if user == "" {
		user = "0"
	}
	if err := a.findUser(user, &acc); err != nil {
		return acc, err
	}
	if hasGroup && group != "" {
		return acc, a.findGroup(group, &acc)
	}
	if acc.name == "" {
		return acc, nil
	}
	return acc, a.findMemberships(&acc)
}

func (a accounts) findUser(user string, acc *account) error {
	id, numeric := parseID(user)
	found := false
	err := scanFile(a.passwd, 7, func(f [][]byte) bool {
		uid, ok := parseID(string(f[2]))
		gid, ok2 := parseID(string(f[3]))
		if !ok || !ok2 || string(f[0]) != user && !(numeric && uid == id) {
			return true
		}
		acc.uid, acc.gid, acc.name = uid, gid, string(f[0])
		if len(f[5]) > 0 {
			acc.home = string(f[5])
		}
		found = true
		return false
	})
	if err != nil || found {
		return err
	}
	if !numeric {
		return userErrorf("user %q: no such user in %s of the guest", user, a.passwd).
			WithHint("name a user of the guest, or a numeric uid")
	}
	acc.uid = id
	return nil
}

func (a accounts) findGroup(group string, acc *account) error {
	id, numeric := parseID(group)
	found := false
	err := scanFile(a.group, 4, func(f [][]byte) bool {
		gid, ok := parseID(string(f[2]))
		if ok && string(f[0]) == group {
			acc.gid, found = gid, true
		}
		return !found
	})
	if err != nil || found {
		return err
	}
	if !numeric {
		return userErrorf("group %q: no such group in %s of the guest", group, a.group).
			WithHint("name a group of the guest, or a numeric gid")
	}
	acc.gid = id
	return nil
}

func (a accounts) findMemberships(acc *account) error {
	name := []byte(acc.name)
	return scanFile(a.group, 4, func(f [][]byte) bool {
		gid, ok := parseID(string(f[2]))
		if !ok || gid == acc.gid {
			return true
		}
		for member := range bytes.SplitSeq(f[3], []byte(",")) {
			if bytes.Equal(member, name) {
				acc.groups = append(acc.groups, gid)
				break
			}
		}
		return len(acc.groups) < maxGroups
	})
}

// parseID reads a uid or gid. The highest value means "none" to the kernel.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

func userErrorf(format string, args ...any) *api.Error {
	return api.Errorf(api.CodeNotFound, format, args...).WithField(api.FieldUser)
}

// scanFile gives visit the fields of each line of a file in passwd(5) format
// that has at least min of them, until visit returns false.
func scanFile(name string, min int, visit func(fields [][]byte) bool) error {
	// O_NONBLOCK: the file is the guest's, and may be a FIFO.
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return userErrorf("looking up a user: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return userErrorf("looking up a user: %s is no regular file", name)
	}
	if err := scanLines(f, min, visit); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return nil
}

// scanLines skips what glibc's fgetpwent would: comments, lines with too few
// fields, and lines longer than any it would accept.
func scanLines(r io.Reader, min int, visit func(fields [][]byte) bool) error {
	in := bufio.NewReader(r)
	var line []byte
	skip := false
	for {
		part, err := in.ReadSlice('\n')
		if skip = skip || len(line)+len(part) > maxLine; !skip {
			line = append(line, part...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil && err != io.EOF {
			return err
		}
		if text := bytes.TrimSpace(line); !skip && len(text) > 0 && text[0] != '#' {
			if fields := bytes.Split(text, []byte(":")); len(fields) >= min && !visit(fields) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		line, skip = line[:0], false
	}
}
