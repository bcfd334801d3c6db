// Package disk knows the files in which other systems keep disks: it finds
// out what one is, refuses those that aren't whole in themselves or that lie,
// and has the others converted to and from raw.
//
// All of them are hostile input. Headers are checked here, in bounded memory;
// what follows them is read by qemu-img alone, shut in a cell that holds
// nothing but source and target.
package disk

import "github.com/cleave-project/cleave/api"

// Formats are those that can be imported.
var Formats = []string{"raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "ova", "iso"}

// ExportFormats are those that can be exported.
var ExportFormats = []string{"qcow2", "raw", "ova"}

// Machine describes to others what a disk was running in.
type Machine struct {
	Name     string
	CPUs     int
	Memory   api.Bytes
	Firmware string // bios or uefi
}
