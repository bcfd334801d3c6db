package disk

import "io"

// QEMU takes what is missing at the end of an image for zeros. So that a
// download that broke off isn't taken for a disk, tables are followed here to
// see that what they point to begins within the file.

// eachEntry calls do for each of count entries of so many bytes, which lie
// one after the other.
func eachEntry(f io.ReaderAt, size, offset, count, bytes int64, do func(n int64, entry []byte) error) error {
	const most = 64 << 10
	for n := int64(0); n < count; {
		part := min(count-n, most/bytes)
		b, err := read(f, size, offset+n*bytes, int(part*bytes))
		if err != nil {
			return err
		}
		for ; len(b) > 0; b = b[bytes:] {
			if err := do(n, b[:bytes]); err != nil {
				return err
			}
			n++
		}
	}
	return nil
}

// within refuses what begins at or after the end of the file.
func within(size, at int64, what string) error {
	if at < 0 || at >= size {
		return corrupt("it is cut off: %s should be at %d, and it ends at %d", what, at, size)
	}
	return nil
}

// budget bounds the tables that are followed by what the file has room for:
// those of a hostile one may all be the same.
type budget int64

func (b *budget) spend(n int64) error {
	if *b -= budget(n); *b < 0 {
		return corrupt("it has more tables than there is room for in it")
	}
	return nil
}

// walkQcow2 follows the tables of a qcow2 file. entry is how many bytes an
// entry of a second table has: 16 when clusters are subdivided.
func walkQcow2(f io.ReaderAt, size, l1, entries int64, clusterBits uint32, entry int64) error {
	const offsetBits, compressed = 1<<56 - 1<<9, 1 << 62
	bits := 62 - (clusterBits - 8) // of the offset of a compressed cluster
	left := budget(size)
	return eachEntry(f, size, l1, entries, 8, func(_ int64, e []byte) error {
		table := int64(be.Uint64(e) & offsetBits)
		if table == 0 {
			return nil
		}
		if err := left.spend(1 << clusterBits); err != nil {
			return err
		}
		return eachEntry(f, size, table, int64(1)<<clusterBits/entry, entry, func(_ int64, e []byte) error {
			at := be.Uint64(e)
			if at&compressed != 0 {
				at &= 1<<bits - 1
			} else {
				at &= offsetBits
			}
			if at == 0 {
				return nil
			}
			return within(size, int64(at), "data")
		})
	})
}

// walkVMDK follows the grain directory of a sparse vmdk, of which places are
// counted in sectors.
func walkVMDK(f io.ReaderAt, size, directory, tables, perTable int64) error {
	left := budget(size)
	return eachEntry(f, size, directory*512, tables, 4, func(_ int64, e []byte) error {
		table := int64(le.Uint32(e))
		if table == 0 {
			return nil
		}
		if err := left.spend(perTable * 4); err != nil {
			return err
		}
		return eachEntry(f, size, table*512, perTable, 4, func(_ int64, e []byte) error {
			if at := int64(le.Uint32(e)); at > 1 { // 1 is a grain of zeros
				return within(size, at*512, "data")
			}
			return nil
		})
	})
}

// walkVDI follows the map of blocks of a VDI file.
func walkVDI(f io.ReaderAt, size, blockMap, blocks, data, block int64) error {
	return eachEntry(f, size, blockMap, blocks, 4, func(_ int64, e []byte) error {
		const free, discarded = 0xffffffff, 0xfffffffe
		n := int64(le.Uint32(e))
		if n == free || n == discarded {
			return nil
		}
		// All of a block is there, once any of it is.
		return within(size, data+(n+1)*block-1, "the end of a block")
	})
}
