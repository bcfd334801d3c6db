package disk

import (
	"context"
	"io"

	"github.com/cleave-project/cleave/api"
)

const (
	isoSector = 2048
	isoFirst  = 16 * isoSector // the first volume descriptor (ECMA-119 §6.7.1)
	isoMagic  = "CD001"
	torito    = "EL TORITO SPECIFICATION"
)

// checkISO looks at an ISO 9660 medium and tells what boots from it; nothing
// if it is not made for that (El Torito 1.0; UEFI 2.10 §13.3.2.1).
func checkISO(f io.ReaderAt, size int64) (firmware string, err error) {
	primary, catalog := false, int64(-1)
	for n := range int64(64) {
		b, err := read(f, size, isoFirst+n*isoSector, isoSector)
		if err != nil {
			return "", err
		}
		if string(b[1:6]) != isoMagic {
			return "", corrupt("its volume descriptors don't end")
		}
		switch b[0] {
		case 0:
			if cString(b[7:39]) == torito {
				catalog = int64(le.Uint32(b[71:])) * isoSector
			}
		case 1:
			primary = true
			if sectors, sector := int64(le.Uint32(b[80:])), int64(le.Uint16(b[128:])); sectors*sector > size {
				return "", corrupt("it is cut off: its volume has %d bytes, and the file %d", sectors*sector, size)
			}
		}
		if b[0] == 255 {
			break
		}
	}
	if !primary {
		return "", corrupt("it has no primary volume")
	}
	if catalog < 0 {
		return "", nil
	}
	b, err := read(f, size, catalog, isoSector)
	if err != nil {
		return "", err
	}
	return toritoFirmware(b), nil
}

// toritoFirmware reads a boot catalog: a validation entry and an initial
// one, then sections each with a header.
func toritoFirmware(b []byte) string {
	const bootable, efi = 0x88, 0xef
	platform, uefi := b[1], false
	for at := 32; at+32 <= len(b); at += 32 {
		switch e := b[at : at+32]; {
		case e[0] == 0x90 || e[0] == 0x91:
			platform = e[1]
		case e[0] == bootable && platform == 0:
			return "bios"
		case e[0] == bootable && platform == efi:
			uefi = true
		}
	}
	if uefi {
		return "uefi"
	}
	return ""
}

// Medium looks at what is to go into a CD drive, and tells what boots from
// it; nothing if it is not made for that.
func Medium(ctx context.Context, r io.ReaderAt, size int64) (firmware string, err error) {
	f := cancelledAt{ctx, r}
	found, err := detect(f, size)
	if err != nil {
		return "", err
	}
	if found == "iso" {
		return checkISO(f, size)
	}
	if isUDF(f, size) {
		return "", nil // one that boots is ISO 9660 as well
	}
	return "", api.Errorf(api.CodeInvalid, "it is no medium for a CD drive%s: neither ISO 9660 nor UDF", isRather(found)).
		WithHint("xorriso or genisoimage make one of files; `cleave image import` takes disks")
}

// isUDF looks for the volume recognition sequence of UDF (ECMA-167 2/8.3,
// 3/9.1), which is where that of ISO 9660 is.
func isUDF(f io.ReaderAt, size int64) bool {
	for n := range int64(16) {
		b, err := read(f, size, isoFirst+n*isoSector, 7)
		if err != nil {
			return false
		}
		switch string(b[1:6]) {
		case "NSR02", "NSR03":
			return true
		case isoMagic, "BEA01", "BOOT2":
		default:
			return false
		}
	}
	return false
}
