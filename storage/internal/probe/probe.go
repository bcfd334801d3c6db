// Package probe finds out what several storage drivers need of a host.
package probe

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

// Tool looks for a command.
func Tool(name, remedy string) api.Finding {
	f := api.Finding{Area: "storage", Name: name, State: "ok"}
	path, err := exec.LookPath(name)
	if f.Detail = path; err != nil {
		f.State, f.Detail, f.Remedy = "missing", err.Error(), remedy
	}
	return f
}

// Loop looks for loop devices.
func Loop() api.Finding {
	f := api.Finding{Area: "storage", Name: "loop devices", State: "ok", Detail: "/dev/loop-control"}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		f.State, f.Detail, f.Remedy = "missing", err.Error(), "modprobe loop, and run the daemon as root"
		return f
	}
	control.Close()
	return f
}

// Reserve tries to reserve blocks on the file system of dir, which exists;
// and otherwise says what happens when its disk runs full without.
func Reserve(dir, otherwise string) api.Finding {
	f := api.Finding{Area: "storage", Name: "space reservation", State: "ok", Detail: dir + " reserves blocks for files that guests write to"}
	able, err := hostdisk.CanReserve(dir)
	switch {
	case err != nil:
		f.State, f.Detail, f.Remedy = "missing", fmt.Sprintf("%s: %v", dir, err), "make it writable for the daemon"
	case !able:
		f.State, f.Detail = "limited", fmt.Sprintf("%s can't reserve blocks: if its disk runs full, %s", dir, otherwise)
		f.Remedy = "keep space free there, or put the pool on ext4, xfs or btrfs"
	}
	return f
}
