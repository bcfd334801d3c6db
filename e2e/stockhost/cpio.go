package stockhost

import (
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
)

// cpio writes the archive that the kernel takes for an initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
type cpio struct {
	w    io.Writer
	n    int64
	ino  int
	dirs map[string]bool
	err  error
}

// Types of files in a mode.
const (
	typeDir  = 0o040000
	typeFile = 0o100000
)

// file adds a regular file, and the directories above it.
func (c *cpio) file(name string, perm uint32, data []byte) {
	c.dir(path.Dir(name))
	c.entry(name, typeFile|perm, data)
}

// dir adds a directory, once, and those above it.
func (c *cpio) dir(name string) {
	if name == "." || c.dirs[name] {
		return
	}
	c.dir(path.Dir(name))
	if c.dirs == nil {
		c.dirs = map[string]bool{}
	}
	c.dirs[name] = true
	c.entry(name, typeDir|0o755, nil)
}

func (c *cpio) entry(name string, mode uint32, data []byte) {
	c.ino++
	fields := []any{c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	header := "070701"
	for _, f := range fields {
		header += fmt.Sprintf("%08x", f)
	}
	c.write([]byte(header + name + "\x00"))
	c.write(data)
}

// write pads to the multiple of four at which the next part begins.
func (c *cpio) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	if pad := int(-c.n & 3); err == nil && pad > 0 {
		n, err = c.w.Write(make([]byte, pad))
		c.n += int64(n)
	}
	c.err = err
}

// Close writes the trailer.
func (c *cpio) Close() error {
	c.entry("TRAILER!!!", 0, nil)
	return c.err
}

// Archive writes an initramfs of executable files.
func Archive(w io.Writer, files map[string][]byte) error {
	c := &cpio{w: w}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		c.file(name, 0o755, files[name])
	}
	c.dir("dev")
	return c.Close()
}
