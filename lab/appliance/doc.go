// Package appliance builds the system of a host: a distribution's kernel, and
// a root of its packages and our programs that is never written to. It is what
// the lab boots, and the beginning of what is installed on a real server.
//
// An Image is a directory:
//
//	kernel          bootable
//	initramfs       loads the drivers of the disks, and goes on from root.erofs
//	root.erofs      packages, our programs, and what is in root/ here
//	modules.erofs   /lib/modules/RELEASE
//	appliance.json  what it was made of; written last
//
// The same packages and programs give the same bytes. Packages come from the
// building host's own sources by apt, which verifies them; they are unpacked
// and never installed, so that none of their scripts runs and no privilege is
// needed. The kernel comes from package kernel's store.
//
// The disks of a host are told apart by their serial numbers: root, modules,
// files (EROFS, optional, shown at /lab), data (optional: an ext4 that is made
// where there is none, and shown at /var; without it /var is lost with the
// power, as everything else that the host writes). The kernel's command line
// says who the host is: cleave.host=NAME cleave.address=ADDRESS/BITS, and, for
// a host that knows others, cleave.hosts=NAME:ADDRESS,... With cleave.daemon it
// runs cleaved. Its agent serves on the virtio port org.cleave.agent.
package appliance
