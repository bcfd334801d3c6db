package disk

import (
	"hash/crc32"
	"io"

	"github.com/cleave-project/cleave/api"
)

const gptMagic = "EFI PART"

// Types of GPT partitions, as they lie on the disk (UEFI 2.10 §5.3.3).
const (
	gptSystem = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b" // EFI system partition
	gptBIOS   = "\x48\x61\x68\x21\x49\x64\x6f\x6e\x74\x4e\x65\x65\x64\x45\x46\x49" // GRUB's place for BIOS
)

// legacyBoot is the attribute of a GPT partition from which BIOS boots.
const legacyBoot = 1 << 2

// table is what a disk's partition table tells.
type table struct {
	sector int64 // of GPT; 0 without
	end    int64 // of what the table says to be on the disk
	system bool  // has an EFI system partition
	bios   bool  // has what only BIOS would need
	code   bool  // has code in its first sector
}

// checkRaw refuses a disk that ends before its partitions.
func checkRaw(f io.ReaderAt, size int64) error {
	if size == 0 {
		return api.Errorf(api.CodeInvalid, "it is empty")
	}
	t, err := readTable(f, size)
	if err != nil {
		return err
	}
	if t.end > size {
		return corrupt("it is cut off: its partitions end at %d, and it at %d", t.end, size)
	}
	return nil
}

// Firmware guesses what boots a raw disk from its partition table: bios
// unless only UEFI could.
func Firmware(f io.ReaderAt, size int64) (string, error) {
	t, err := readTable(f, size)
	if err != nil {
		return "", err
	}
	// Systems put code that merely says "no" into a disk that is only for UEFI.
	if t.system && !t.bios && (t.sector != 0 || !t.code) {
		return "uefi", nil
	}
	return "bios", nil
}

func readTable(f io.ReaderAt, size int64) (t table, err error) {
	if size < 512 {
		return table{}, nil
	}
	mbr, err := read(f, size, 0, 512)
	if err != nil || mbr[510] != 0x55 || mbr[511] != 0xaa {
		return table{}, err
	}
	for _, c := range mbr[:440] {
		t.code = t.code || c != 0
	}
	protective := false
	for e := mbr[446:510]; len(e) > 0; e = e[16:] {
		switch e[4] {
		case 0xee:
			protective = true
		case 0xef:
			t.system = true
		case 0:
			continue
		}
		t.bios = t.bios || e[0] == 0x80
		if e[4] != 0xee {
			// Sizes in old tables are not to be relied on, beginnings are.
			t.end = max(t.end, int64(le.Uint32(e[8:]))*512)
		}
	}
	if !protective {
		return t, nil
	}
	for _, sector := range []int64{512, 4096} {
		if found, err := t.readGPT(f, size, sector); err != nil || found {
			return t, err
		}
	}
	return t, nil
}

// readGPT reads a GUID partition table (UEFI 2.10 §5.3.2) of a disk with such
// sectors.
func (t *table) readGPT(f io.ReaderAt, size, sector int64) (bool, error) {
	if size < 2*sector {
		return false, nil
	}
	b, err := read(f, size, sector, 512)
	if err != nil || string(b[:8]) != gptMagic {
		return false, err
	}
	n := le.Uint32(b[12:])
	if n < 92 || n > 512 {
		return false, nil
	}
	sum := le.Uint32(b[16:])
	copy(b[16:20], []byte{0, 0, 0, 0})
	if crc32.ChecksumIEEE(b[:n]) != sum {
		return false, nil // firmware wouldn't believe it either
	}
	last, at := int64(le.Uint64(b[48:])), int64(le.Uint64(b[72:]))
	count, length := int64(le.Uint32(b[80:])), int64(le.Uint32(b[84:]))
	if last < 0 || last > MaxSize/sector || at < 0 || at > MaxSize/sector || count > 1024 || length < 128 || length > 4096 {
		return false, nil
	}
	t.sector = sector
	t.end = max(t.end, (last+1)*sector)
	if t.end > size {
		return true, nil
	}
	entries, err := read(f, size, at*sector, int(count*length))
	if err != nil {
		return false, err
	}
	for ; int64(len(entries)) >= length; entries = entries[length:] {
		switch string(entries[:16]) {
		case gptSystem:
			t.system = true
		case gptBIOS:
			t.bios = true
		}
		t.bios = t.bios || le.Uint64(entries[48:])&legacyBoot != 0
	}
	return true, nil
}
