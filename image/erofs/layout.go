package erofs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"syscall"
)

// layout is where an inode lies, as far as Finish has decided.
type layout struct {
	nid    uint64 // position in the metadata area in slots
	placed bool
	nlink  uint32
	parent *Inode // of a directory

	size   int64 // i_size
	start  int64 // byte offset of whole blocks
	inline int   // bytes kept beside the inode
	xattrs int   // bytes of attributes
}

// The metadata area is addressed in slots.
const (
	slotSize  = 32
	inodeSize = 64 // extended inodes only: the compact form has no time
	direntLen = 12
)

// plan walks the tree, checks it against the format's limits, and places
// every inode once, each directory's own before those of its files.
func (w *Writer) plan(root *Inode) (order []*Inode, metaSize int64, err error) {
	if !root.IsDir() {
		return nil, 0, fmt.Errorf("the root is no directory")
	}
	root.parent = root
	// An explicit stack: the depth of a hostile tree must not become ours.
	stack := []*Inode{root}
	pos := int64(inodeSize) // an inode number of 0 means "deleted" to old readdir users
	place := func(i *Inode) error {
		if err := w.measure(i); err != nil {
			return err
		}
		for !fits(pos, i) {
			pos += slotSize
		}
		i.nid, i.placed = uint64(pos/slotSize), true
		pos += roundUp(int64(inodeSize+i.xattrs+i.inline), slotSize)
		order = append(order, i)
		return nil
	}
	if err := place(root); err != nil {
		return nil, 0, err
	}
	root.nlink = 2
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for n := len(dir.Entries) - 1; n >= 0; n-- {
			if i := dir.Entries[n].Inode; i.IsDir() {
				if i.parent != nil {
					return nil, 0, fmt.Errorf("directory %q has two names", dir.Entries[n].Name)
				}
				i.parent, i.nlink = dir, 2
				dir.nlink++
				stack = append(stack, i)
			}
		}
		for _, e := range dir.Entries {
			if !e.Inode.IsDir() {
				e.Inode.nlink++
			}
			if e.Inode.placed {
				continue
			}
			if err := place(e.Inode); err != nil {
				return nil, 0, fmt.Errorf("%q: %w", e.Name, err)
			}
		}
	}
	return order, roundUp(pos, BlockSize), nil
}

// fits tells whether an inode may lie at pos: neither its 64 bytes nor its
// inline data may straddle a block (erofs_read_inode handles the first, but
// erofs_map_blocks_flatmode refuses the second); attributes may.
func fits(pos int64, i *Inode) bool {
	if pos%BlockSize+inodeSize > BlockSize {
		return false
	}
	return i.inline == 0 || (pos+int64(inodeSize+i.xattrs))%BlockSize+int64(i.inline) <= BlockSize
}

// measure finds out how much an inode needs and where its blocks are.
func (w *Writer) measure(i *Inode) error {
	if err := i.measureXattrs(); err != nil {
		return err
	}
	switch i.Type() {
	case syscall.S_IFREG:
		if i.Data.Size > MaxSize {
			return fmt.Errorf("a file of %d bytes is larger than the format allows", i.Data.Size)
		}
		i.size, i.start, i.inline = i.Data.Size, i.Data.Start, len(i.Data.Tail)
	case syscall.S_IFDIR:
		slices.SortFunc(i.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
		for n, e := range i.Entries {
			if e.Name == "" || e.Name == "." || e.Name == ".." || len(e.Name) > MaxName || strings.ContainsAny(e.Name, "/\x00") {
				return fmt.Errorf("%q can't be a file name", e.Name)
			}
			if n > 0 && e.Name == i.Entries[n-1].Name {
				return fmt.Errorf("%q is there twice", e.Name)
			}
		}
		i.size = i.direntSize()
		w.placeBlocks(i)
	case syscall.S_IFLNK:
		if len(i.Target) == 0 || len(i.Target) >= BlockSize {
			return fmt.Errorf("a link target of %d bytes is not possible", len(i.Target))
		}
		i.size = int64(len(i.Target))
		w.placeBlocks(i)
	}
	return nil
}

// placeBlocks decides how much of i.size goes beside the inode and reserves
// blocks for the rest.
func (w *Writer) placeBlocks(i *Inode) {
	if tail := i.size % BlockSize; tail <= maxTail {
		i.inline = int(tail)
	}
	if whole := i.size - int64(i.inline); whole > 0 {
		i.start = w.Reserve(whole)
	}
}

// dirBlocks calls yield with the entries of each block of a directory. Names
// are sorted by bytes within and across blocks, "." and ".." among them
// (erofs_find_target_block searches them by halving).
func (i *Inode) dirBlocks(yield func(entries []Entry)) {
	all := make([]Entry, 0, len(i.Entries)+2)
	all = append(all, Entry{".", i}, Entry{"..", i.parent})
	all = append(all, i.Entries...)
	// Few names sort before "..": those that begin with a byte below '.'.
	slices.SortFunc(all, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	from, used := 0, 0
	for n, e := range all {
		need := direntLen + len(e.Name)
		if used+need > BlockSize {
			yield(all[from:n])
			from, used = n, 0
		}
		used += need
	}
	yield(all[from:])
}

func (i *Inode) direntSize() int64 {
	size, last := int64(0), int64(0)
	i.dirBlocks(func(entries []Entry) {
		size += last
		n := 0
		for _, e := range entries {
			n += direntLen + len(e.Name)
		}
		size, last = roundUp(size, BlockSize), int64(n)
	})
	return size + last
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }
