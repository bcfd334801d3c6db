package boot

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// diskModules has all modules of the kernel.
const diskModules = "modules"

// mountModules puts the kernel's modules where modprobe looks for them, unless
// the guest has some of its own there. The directory for them stays in the
// guest's tree, as those of volumes do. A guest that is only up for its files
// to be moved gets none.
func (m *machine) mountModules() error {
	if m.boot.Modules == "" || m.boot.Maintenance {
		return nil
	}
	target := "/lib/modules/" + m.boot.Modules
	if own, _ := os.ReadDir(target); len(own) > 0 {
		return nil
	}
	dev, err := m.findDisk(diskModules, deviceGrace)
	if err != nil {
		return err
	}
	const attr = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	f, err := mountfd.New("erofs").String("source", dev).Flag("ro").Mount(attr)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "mount the disk %q: %w", diskModules, explain(err))
	}
	defer f.Close()
	return m.place(f, target, true)
}
