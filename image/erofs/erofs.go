// Package erofs writes EROFS images (Linux Documentation/filesystems/
// erofs.rst, fs/erofs/erofs_fs.h): uncompressed, one device, 4 KiB blocks,
// readable by every kernel since 5.4.
//
// The file's data comes first and the inodes last, so that data of unknown
// total size is written to its final place as it arrives, by any number of
// goroutines, and never copied again. Which of it becomes part of the image
// is decided at the end: blocks that no inode names are given back to the
// file system. What github.com/erofs/go-erofs, which reads these images, has
// no way to write is the reason for this package: several names of one
// inode, POSIX ACLs, and data that is already where it belongs.
//
// Store and Reserve may be called concurrently; Finish ends the writing.
package erofs

import (
	"io/fs"
	"syscall"
	"time"
)

// BlockSize is the only block size written: the page size of all targets
// that need no more.
const BlockSize = 4096

// Limits of the format.
const (
	MaxName   = 255
	MaxXattrs = 12 + 4*(1<<16-2) // bytes of one inode's attributes: i_xattr_icount is 16 bits wide
	MaxSize   = (1<<32 - 2) * BlockSize
)

// Inode is one file of any type. Several directory entries may point to the
// same Inode; link counts are computed.
type Inode struct {
	Mode     uint32 // S_IF* and permission bits
	UID, GID uint32
	Mtime    time.Time
	Rdev     uint32
	Xattrs   []Xattr
	Data     Data    // of a regular file
	Target   string  // of a symbolic link
	Entries  []Entry // of a directory, in any order, without "." and ".."

	layout
}

// Entry is a name in a directory.
type Entry struct {
	Name  string
	Inode *Inode
}

// Xattr is an extended attribute with its full name.
type Xattr struct{ Name, Value string }

// Type is the S_IF* part of the mode.
func (i *Inode) Type() uint32 { return i.Mode & syscall.S_IFMT }

// IsDir tells whether it is a directory.
func (i *Inode) IsDir() bool { return i.Type() == syscall.S_IFDIR }

// Placed tells, after Finish, whether the image holds the inode.
func (i *Inode) Placed() bool { return i.placed }

// FileMode is the mode in Go's terms.
func (i *Inode) FileMode() fs.FileMode {
	m := fs.FileMode(i.Mode & 0o777)
	for _, b := range []struct {
		unix uint32
		mode fs.FileMode
	}{{syscall.S_ISUID, fs.ModeSetuid}, {syscall.S_ISGID, fs.ModeSetgid}, {syscall.S_ISVTX, fs.ModeSticky}} {
		if i.Mode&b.unix != 0 {
			m |= b.mode
		}
	}
	switch i.Type() {
	case syscall.S_IFDIR:
		m |= fs.ModeDir
	case syscall.S_IFLNK:
		m |= fs.ModeSymlink
	case syscall.S_IFIFO:
		m |= fs.ModeNamedPipe
	case syscall.S_IFSOCK:
		m |= fs.ModeSocket
	case syscall.S_IFBLK:
		m |= fs.ModeDevice
	case syscall.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	}
	return m
}
