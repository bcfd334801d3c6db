package rootfs

import (
	"strings"
	"syscall"

	"github.com/cleave-project/cleave/image/erofs"
)

// parent resolves the directory of a clean name and returns it with the last
// component. With create, missing directories are made; else the directory
// is nil when there is none.
func (t *Tree) parent(name string, create bool) (*dir, string, error) {
	parent, base := splitName(name)
	if t.cached.dir != nil && t.cached.name == parent {
		return t.cached.dir, base, t.step(1)
	}
	d, err := t.walk(parent, create)
	if err == nil && d != nil {
		t.cached.name, t.cached.dir = parent, d
	}
	return d, base, err
}

// forget must follow every change that can make a path lead elsewhere.
func (t *Tree) forget() { t.cached.dir = nil }

// step bounds the work that names can cause: forty links of 2,000 components
// each, two million times, would keep a processor busy for days.
func (t *Tree) step(n int) error {
	if t.steps += int64(n); t.steps > maxSteps {
		return corrupt("the image's names take too long to resolve")
	}
	return nil
}

// walk follows a path from the root to a directory, through symbolic links,
// never above the root.
func (t *Tree) walk(name string, create bool) (*dir, error) {
	links := 0
	d := t.root
	rest := name
	for rest != "" {
		if err := t.step(1); err != nil {
			return nil, err
		}
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			d = d.up
			continue
		}
		e, ok := d.names[part]
		switch {
		case ok && e.dir != nil:
			d = e.dir
		case ok && e.inode.Type() == syscall.S_IFLNK:
			if links++; links > maxLinks {
				return nil, corrupt("%.80q: too many symbolic links", name)
			}
			if strings.HasPrefix(e.inode.Target, "/") {
				d = t.root
			}
			rest = e.inode.Target + "/" + rest
		case ok && create:
			return nil, corrupt("%.80q: %.80q is no directory", name, part)
		case ok || !create:
			return nil, nil
		case len(part) > erofs.MaxName:
			return nil, corrupt("%.80q: a part of a link is longer than %d bytes", name, erofs.MaxName)
		case d.depth >= maxDepth:
			return nil, corrupt("%.80q is nested too deep", name)
		default:
			made := newDir(d, impliedDir())
			d.names[part] = edge{inode: made.inode, dir: made, layer: t.layer}
			d = made
		}
	}
	return d, nil
}

// Lookup finds a file of the tree by its path, following symbolic links
// inside the tree, and returns it with its real path. It returns nil when
// there is none.
func (t *Tree) Lookup(name string) (*erofs.Inode, string) {
	for range maxLinks {
		dirname, base := splitName(strings.Trim(name, "/"))
		d, err := t.walk(dirname, false)
		if err != nil || d == nil {
			return nil, ""
		}
		if base == "" || base == "." || base == ".." {
			d, err = t.walk(name, false)
			if err != nil || d == nil {
				return nil, ""
			}
			return d.inode, d.path()
		}
		e, ok := d.names[base]
		if !ok {
			return nil, ""
		}
		at := strings.TrimSuffix(d.path(), "/") + "/" + base
		if e.inode.Type() != syscall.S_IFLNK {
			return e.inode, at
		}
		if name = e.inode.Target; !strings.HasPrefix(name, "/") {
			name = d.path() + "/" + e.inode.Target
		}
	}
	return nil, ""
}

// path is the real path of a directory.
func (d *dir) path() string {
	if d.up == d {
		return "/"
	}
	for name, e := range d.up.names {
		if e.dir == d {
			return strings.TrimSuffix(d.up.path(), "/") + "/" + name
		}
	}
	return "/"
}
