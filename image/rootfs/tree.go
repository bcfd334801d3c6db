package rootfs

import (
	"syscall"
	"time"

	"github.com/cleave-project/cleave/image/erofs"
)

// Tree is the merged file tree. It is not safe for concurrent use.
type Tree struct {
	root    *dir
	layer   int32 // of the layer being applied
	steps   int64
	files   []*erofs.Inode  // every regular file of every layer, kept or not
	dropped map[string]bool // names of devices that were left out
	cached  struct {        // where the last name's parent resolved to
		name string
		dir  *dir
	}
}

// dir is a directory of the tree; it has exactly one name.
type dir struct {
	inode *erofs.Inode
	names map[string]edge
	up    *dir
	depth int
}

// edge is a name in a directory.
type edge struct {
	inode *erofs.Inode
	dir   *dir  // when inode is a directory
	layer int32 // the layer that last wrote this name
}

// NewTree returns an empty tree.
func NewTree() *Tree {
	root := newDir(nil, impliedDir())
	root.up = root
	return &Tree{root: root, dropped: map[string]bool{}}
}

func newDir(up *dir, inode *erofs.Inode) *dir {
	d := &dir{inode: inode, names: map[string]edge{}, up: up}
	if up != nil {
		d.depth = up.depth + 1
	}
	return d
}

// impliedDir is a directory that an archive uses but doesn't describe.
func impliedDir() *erofs.Inode {
	return &erofs.Inode{Mode: syscall.S_IFDIR | 0o755, Mtime: time.Unix(0, 0)}
}

// Apply lays a layer over the tree. After an error the tree is useless.
func (t *Tree) Apply(l *Layer) error {
	t.layer++
	t.forget()
	for n := range l.entries {
		e := &l.entries[n]
		var err error
		switch e.kind {
		case kindWhiteout:
			err = t.hide(e.name)
		case kindOpaque:
			err = t.hideAll(e.name)
		case kindLink:
			err = t.link(e)
		default:
			err = t.put(e.name, e.inode)
		}
		if err != nil {
			return err
		}
		if e.kind == kindFile && e.inode.Type() == syscall.S_IFREG {
			t.files = append(t.files, e.inode)
		}
	}
	return nil
}

// put gives an inode a name; a nil inode (a device) takes the name away.
func (t *Tree) put(name string, inode *erofs.Inode) error {
	if inode != nil && inode.IsDir() {
		// A layer may be applied twice, and a directory has only one name.
		c := *inode
		inode = &c
	}
	if name == "" {
		t.root.inode = inode
		return nil
	}
	parent, base, err := t.parent(name, true)
	if err != nil {
		return err
	}
	if inode == nil {
		t.dropped[name] = true
		delete(parent.names, base)
		t.forget()
		return nil
	}
	old, exists := parent.names[base]
	switch {
	case !inode.IsDir():
		parent.names[base] = edge{inode: inode, layer: t.layer}
		if exists && (old.dir != nil || old.inode.Type() == syscall.S_IFLNK) {
			t.forget()
		}
	case exists && old.dir != nil:
		old.dir.inode = inode
		parent.names[base] = edge{inode: inode, dir: old.dir, layer: t.layer}
	default:
		if parent.depth >= maxDepth {
			return corrupt("directory %.80q is nested too deep", name)
		}
		parent.names[base] = edge{inode: inode, dir: newDir(parent, inode), layer: t.layer}
		t.forget()
	}
	return nil
}

// link adds a name to a file that is already there, in this layer or below
// (layer.md, "Hardlinks").
func (t *Tree) link(e *entry) error {
	if e.target == "" {
		return corrupt("hard link %.80q to a directory", e.name)
	}
	parent, base, err := t.parent(e.target, false)
	if err != nil {
		return err
	}
	var old edge
	if parent != nil {
		old = parent.names[base]
	}
	switch {
	case old.inode == nil && t.dropped[e.target]:
		return t.put(e.name, nil)
	case old.inode == nil:
		return corrupt("hard link %.80q to %.80q, which isn't there", e.name, e.target)
	case old.dir != nil:
		return corrupt("hard link %.80q to directory %.80q", e.name, e.target)
	}
	return t.put(e.name, old.inode)
}

// hide removes what lower layers have under a name.
func (t *Tree) hide(name string) error {
	parent, base, err := t.parent(name, false)
	if err != nil || parent == nil {
		return err
	}
	return t.prune(parent, base)
}

// hideAll removes what lower layers have in a directory.
func (t *Tree) hideAll(name string) error {
	d, err := t.walk(name, false)
	if err != nil || d == nil {
		return err
	}
	for base := range d.names {
		if err := t.prune(d, base); err != nil {
			return err
		}
	}
	return nil
}

// prune removes a name unless this layer wrote it or something below it.
func (t *Tree) prune(parent *dir, base string) error {
	if err := t.step(1); err != nil {
		return err
	}
	e, ok := parent.names[base]
	if !ok {
		return nil
	}
	t.forget()
	if e.dir != nil {
		for name := range e.dir.names {
			if err := t.prune(e.dir, name); err != nil {
				return err
			}
		}
	}
	switch {
	case e.layer == t.layer:
	case e.dir != nil && len(e.dir.names) > 0:
		// It lives on for what this layer put into it, but what a lower
		// layer said about the directory itself is hidden.
		e.inode, e.layer = impliedDir(), t.layer
		e.dir.inode = e.inode
		parent.names[base] = e
	default:
		delete(parent.names, base)
	}
	return nil
}

// Root finishes the tree: the inodes it returns hold their entries.
func (t *Tree) Root() *erofs.Inode {
	stack := []*dir{t.root}
	for len(stack) > 0 {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		d.inode.Entries = make([]erofs.Entry, 0, len(d.names))
		for name, e := range d.names {
			d.inode.Entries = append(d.inode.Entries, erofs.Entry{Name: name, Inode: e.inode})
			if e.dir != nil {
				stack = append(stack, e.dir)
			}
		}
	}
	return t.root.inode
}

// Hidden returns the contents that no name led to when the image was
// finished.
func (t *Tree) Hidden(yield func(erofs.Data) error) error {
	for _, f := range t.files {
		if !f.Placed() {
			if err := yield(f.Data); err != nil {
				return err
			}
		}
	}
	return nil
}
