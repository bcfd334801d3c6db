package kernel

import (
	"fmt"
	"io"
)

// cpio writes an archive in the format newc, which the kernel unpacks
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w     io.Writer
	inode int
	size  int64
	err   error
}

// Types and permissions of its entries.
const (
	cpioDir  = 0o040755
	cpioFile = 0o100644
	cpioProg = 0o100755
	cpioChar = 0o020600
)

// add writes an entry. All belong to root and have no time.
func (c *cpio) add(name string, mode uint32, major, minor uint32, content []byte) {
	c.inode++
	links := 1
	if mode == cpioDir {
		links = 2
	}
	c.entry(name, c.inode, mode, links, major, minor, content)
}

func (c *cpio) entry(name string, inode int, mode uint32, links int, major, minor uint32, content []byte) {
	// c_magic, ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj,
	// rmin, namesize, chksum
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		inode, mode, 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, 0, name))
	c.align()
	c.write(content)
	c.align()
}

func (c *cpio) write(b []byte) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(b)
		c.size += int64(n)
	}
}

func (c *cpio) align() { c.write(make([]byte, -c.size&3)) }

// finish ends the archive. QEMU and the kernel are given whole pages.
func (c *cpio) finish() error {
	c.entry("TRAILER!!!", 0, 0, 1, 0, 0, nil)
	c.write(make([]byte, -c.size&511))
	return c.err
}
