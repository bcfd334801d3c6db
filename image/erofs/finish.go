package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"syscall"
)

const (
	superOffset = 1024
	magic       = 0xE0F5E1E2

	compatChecksum = 0x1 // EROFS_FEATURE_COMPAT_SB_CHKSUM
	compatMtime    = 0x2 // EROFS_FEATURE_COMPAT_MTIME: the inode's time is mtime

	flatPlain  = 0 // EROFS_INODE_FLAT_PLAIN
	flatInline = 2 // EROFS_INODE_FLAT_INLINE
)

// Finish writes directories, inodes and the superblock. The tree must name
// only Data that this writer stored. It returns the size of the image; the
// caller syncs the file.
func (w *Writer) Finish(root *Inode, uuid [16]byte) (int64, error) {
	order, metaSize, err := w.plan(root)
	if err != nil {
		return 0, err
	}
	meta := w.Reserve(metaSize)
	end := w.next.Load()
	if end/BlockSize > 1<<32-1 {
		return 0, fmt.Errorf("an image of %d bytes is larger than the format allows", end)
	}
	if err := w.f.Truncate(end); err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.f, meta), 1<<20)
	pos := int64(0)
	var b []byte
	for _, i := range order {
		at := int64(i.nid) * slotSize
		if _, err := out.Write(zeros[:at-pos]); err != nil {
			return 0, fmt.Errorf("write image: %w", err)
		}
		if b, err = w.appendInode(b[:0], i); err != nil {
			return 0, err
		}
		if _, err := out.Write(b); err != nil {
			return 0, fmt.Errorf("write image: %w", err)
		}
		pos = at + int64(len(b))
	}
	if err := out.Flush(); err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	super := superblock(uuid, uint64(len(order)), end/BlockSize, meta/BlockSize, root)
	if _, err := w.f.WriteAt(super, 0); err != nil {
		return 0, fmt.Errorf("write image: %w", err)
	}
	return end, nil
}

// appendInode appends the extended inode, its attributes and inline data,
// and writes its blocks where they aren't written yet.
func (w *Writer) appendInode(b []byte, i *Inode) ([]byte, error) {
	content, err := w.content(i)
	if err != nil {
		return nil, err
	}
	format := uint16(1 | flatPlain<<1)
	if i.inline > 0 {
		format = 1 | flatInline<<1
	}
	u := uint32(i.start / BlockSize)
	if t := i.Type(); t == syscall.S_IFCHR || t == syscall.S_IFBLK {
		u = i.Rdev
	}
	le := binary.LittleEndian
	b = le.AppendUint16(b, format)
	b = le.AppendUint16(b, i.xattrCount())
	b = le.AppendUint16(b, uint16(i.Mode))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, uint64(i.size))
	b = le.AppendUint32(b, u)
	b = le.AppendUint32(b, uint32(i.nid)) // i_ino: only for 32-bit stat
	b = le.AppendUint32(b, i.UID)
	b = le.AppendUint32(b, i.GID)
	b = le.AppendUint64(b, uint64(i.Mtime.Unix()))
	b = le.AppendUint32(b, uint32(i.Mtime.Nanosecond()))
	b = le.AppendUint32(b, i.nlink)
	b = append(b, make([]byte, 16)...)
	b = i.appendXattrs(b)
	return append(b, content...), nil
}

// content returns the inline bytes of an inode, and writes the blocks of a
// directory or a long link.
func (w *Writer) content(i *Inode) ([]byte, error) {
	var all []byte
	switch i.Type() {
	case syscall.S_IFREG:
		return i.Data.Tail, nil
	case syscall.S_IFLNK:
		all = []byte(i.Target)
	case syscall.S_IFDIR:
		all = i.appendDirents(make([]byte, 0, i.size))
	}
	whole := len(all) - i.inline
	if whole > 0 {
		if _, err := w.f.WriteAt(all[:whole], i.start); err != nil {
			return nil, fmt.Errorf("write image: %w", err)
		}
	}
	return all[whole:], nil
}

func (i *Inode) appendDirents(b []byte) []byte {
	le := binary.LittleEndian
	i.dirBlocks(func(entries []Entry) {
		for len(b)%BlockSize != 0 {
			b = append(b, 0)
		}
		off := direntLen * len(entries)
		for _, e := range entries {
			b = le.AppendUint64(b, e.Inode.nid)
			b = le.AppendUint16(b, uint16(off))
			b = append(b, fileType(e.Inode.Type()), 0)
			off += len(e.Name)
		}
		for _, e := range entries {
			b = append(b, e.Name...)
		}
	})
	return b
}

// fileType is the type in a directory entry: those of Linux's FT_*.
func fileType(t uint32) byte {
	switch t {
	case syscall.S_IFREG:
		return 1
	case syscall.S_IFDIR:
		return 2
	case syscall.S_IFCHR:
		return 3
	case syscall.S_IFBLK:
		return 4
	case syscall.S_IFIFO:
		return 5
	case syscall.S_IFSOCK:
		return 6
	case syscall.S_IFLNK:
		return 7
	}
	return 0
}

// superblock fills block 0 (struct erofs_super_block at offset 1024).
func superblock(uuid [16]byte, inodes uint64, blocks, meta int64, root *Inode) []byte {
	le := binary.LittleEndian
	block := make([]byte, BlockSize)
	sb := block[superOffset:]
	le.PutUint32(sb[0:], magic)
	le.PutUint32(sb[8:], compatChecksum|compatMtime)
	sb[12] = 12                                           // blkszbits
	le.PutUint16(sb[14:], uint16(root.nid))               // root_nid
	le.PutUint64(sb[16:], inodes)                         // inos
	le.PutUint64(sb[24:], 0)                              // build_time: images are reproducible
	le.PutUint32(sb[36:], uint32(blocks))                 // blocks
	le.PutUint32(sb[40:], uint32(meta))                   // meta_blkaddr
	copy(sb[48:64], uuid[:])                              // uuid
	le.PutUint32(sb[4:], ^crc32.Checksum(sb, castagnoli)) // checksum: crc32c without the final inversion
	return block
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
