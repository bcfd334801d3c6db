package engine

import (
	"context"
	"net"
	"os"

	"github.com/cleave-project/cleave/api"
)

// Names of raw disks in the directory of a volume.
const (
	RootDisk   = "root.img"
	VolumeDisk = "disk.img"
)

// Machine is what a guest with a kernel of its own is made of, beside what
// every guest has.
type Machine struct {
	Arch   string    // of the guest, as Go names it
	CPUs   int       // virtual CPUs; at least 1
	Memory api.Bytes // of the machine at start, its RAM
	Accel  string    // kvm or tcg; the faster one that works if empty
	Engine string    // where several build walls of the kind; the best that fits if empty

	// Kernel boots the image. It is zero for a system of its own, whose disk
	// is the root volume, and which Firmware boots.
	Kernel   Kernel
	Firmware Firmware
	// Disks are those beside image, root and volumes.
	Disks []Disk
	// Restore is the file that Saver.Save wrote, to go on from; empty for a
	// fresh start.
	Restore string
}

// Kernel is one that the host supplies.
type Kernel struct {
	Name   string
	Image  string // path of the bootable image, or of the program linux.uml
	Initrd string // path of the initramfs with agent and modules
	Args   string // more for its command line
	// Modules is the path of an EROFS with all its modules, which the guest
	// finds at /lib/modules/Version; both are empty for a kernel without any.
	Modules string
	Version string // release, as uname -r says
}

// Firmware says how a system of its own is booted.
type Firmware struct {
	Type       string // bios or uefi; empty with a Kernel
	SecureBoot bool   // with the makers' keys enrolled
	TPM        bool   // version 2.0
	// State is a directory that lives as long as the instance: UEFI variables
	// and the TPM's memory.
	State string
	// Order is what is tried, in that order: disk, cdrom, network.
	Order []string
}

// Disk is a disk or a medium beside the root.
type Disk struct {
	ID       string // the guest sees it as serial number; lower-case letters, digits and hyphens
	Path     string // on the host, raw
	ReadOnly bool
	CDROM    bool

	// Of one that is plugged into a running guest (Plugger):
	// Size makes it the disk of a volume, with an ext4 that the engine makes on
	// first use.
	Size api.Bytes
	// Target is where a guest made of an image mounts it; empty for nowhere. A
	// system of its own mounts its disks itself.
	Target string
}

// Display is an engine whose guests may have a screen.
type Display interface {
	// VNC connects to the guest's screen (RFC 6143).
	VNC(ctx context.Context, id string) (net.Conn, error)
	// Screenshot is what the screen shows, as PNG.
	Screenshot(ctx context.Context, id string) ([]byte, error)
}

// Booter is an engine that can tell from outside how far a system of its own
// has come. It must be cheap, and doesn't disturb the guest.
type Booter interface {
	Boot(ctx context.Context, id string) (BootState, error)
}

// BootState is how far a system of its own has come. Both are zero while
// nobody can tell: a boot loader may wait for somebody to choose.
type BootState struct {
	// Alive: there is more than firmware. It stays true.
	Alive bool
	// Failed is why nothing was booted, nor will be unless somebody does
	// something: the firmware says so, and shows it.
	Failed string
}

// Plugger is an engine that changes the devices of running guests. A guest
// made of an image mounts the disks and configures the ports that it gets, and
// keeps them when it boots anew by itself; a disk that it uses is not taken
// away ("in-use"). What was there at the start stays while the guest runs
// ("unsupported"). All or nothing.
type Plugger interface {
	AttachDisk(ctx context.Context, id string, d Disk) error
	DetachDisk(ctx context.Context, id, disk string) error
	// InsertMedium puts another medium in the guest's CD drive; an empty path
	// ejects what is in it.
	InsertMedium(ctx context.Context, id, path string) error
	AttachNIC(ctx context.Context, id string, n NIC, tap *os.File) error
	DetachNIC(ctx context.Context, id, name string) error
}

// Grower is an engine that makes the root disk of a running guest larger. A
// guest made of an image uses all of it at once; a system of its own sees to
// that itself.
type Grower interface {
	// GrowRoot makes the disk so large. It never gets smaller.
	GrowRoot(ctx context.Context, id string, size api.Bytes) error
}

// Wirer is an engine that adds ports to and takes them from the network
// namespaces of running guests.
type Wirer interface {
	// AttachLink has attach move the guest's end of a port to the namespace of
	// a process, as Spec.AttachNet does, and configures it.
	AttachLink(ctx context.Context, id string, n NIC, attach func(ctx context.Context, pid int) error) error
	// DetachLink takes the guest's end away. One that has gone is no error.
	DetachLink(ctx context.Context, id, name string) error
}

// Saver is an engine that can stop a guest with its memory kept in a file,
// from which Start goes on (Machine.Restore).
type Saver interface {
	// Save ends the guest when all is in the file. When it fails the guest
	// runs on and the file is gone.
	Save(ctx context.Context, id, path string) error
}

// Tracker is an engine that can tell which blocks of a running guest's disks
// were changed since a mark was made, for backups and replicas. A disk is named
// root, volume-N for that of mount N of Spec.Mounts, or by its Disk.ID.
//
// A copy is brought up to date by making a mark, asking what was changed since
// the one before, and copying that. What is written meanwhile is told by the
// next round, so the copy is whole when the guest stands still in the last one,
// or when what is copied is a snapshot of the disk that is younger than the
// new mark.
//
// Marks are known as long as the guest runs, and over its end and the next
// start if it ended in order and nobody else has written to the disk. A mark
// that isn't known is no error: then everything may have changed.
type Tracker interface {
	// MarkDisk makes a mark. A disk has a bounded number of them
	// ("no-resources").
	MarkDisk(ctx context.Context, id, disk string) (mark string, err error)
	ChangedSince(ctx context.Context, id, disk, mark string) (Changes, error)
	// ForgetMark forgets a mark that nobody needs. One that isn't known is no
	// error.
	ForgetMark(ctx context.Context, id, disk, mark string) error
}

// Changes is what of a disk was changed.
type Changes struct {
	Size int64 // of the disk, in bytes
	// Ranges are sorted and don't overlap.
	Ranges []Range
	// Lost is why the mark isn't known; Ranges is all of the disk then.
	Lost string
}

// Range is a part of a disk, in bytes.
type Range struct{ Offset, Size int64 }

// Vitals are what can be told of a running machine beyond what every guest
// has.
type Vitals struct {
	Accel   string // kvm, tcg or ptrace
	Agent   string // cleave, qemu or none; empty while that isn't known
	Reboots int    // since it was started, in the same process of its monitor
}

// Inspector is an engine that can tell Vitals. It must be cheap: it is called
// for every look at an instance.
type Inspector interface {
	Inspect(ctx context.Context, id string) (Vitals, error)
}
