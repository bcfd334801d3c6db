package btrfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
)

// Probe tells what this host can do for a pool in dir, which need not exist
// yet. It changes nothing.
func Probe(_ context.Context, dir string) []api.Finding {
	all := []api.Finding{probeKernel()}
	native, err := isNative(hostdisk.Existing(dir))
	if err == nil && native {
		all = append(all, api.Finding{Name: "btrfs pool", State: "ok", Detail: dir + " is on a btrfs: volumes are its subvolumes"})
	} else {
		all = append(all, probeTools(), probeLoop(), probeReserve(hostdisk.Existing(dir)))
	}
	all = append(all, probeQuota(native))
	for i := range all {
		all[i].Area = "storage"
	}
	return all
}

func probeKernel() api.Finding {
	f := api.Finding{Name: "btrfs", State: "ok", Detail: "in the kernel"}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !bytes.Contains(known, []byte("\tbtrfs\n")) {
		f.State, f.Detail = "limited", "not loaded; the kernel loads its module on first use where it is installed"
		f.Remedy = "modprobe btrfs; without it use pools of driver dir"
	}
	return f
}

func probeTools() api.Finding {
	f := api.Finding{Name: "mkfs.btrfs", State: "ok"}
	path, err := exec.LookPath("mkfs.btrfs")
	if f.Detail = path; err != nil {
		f.State, f.Detail, f.Remedy = "missing", err.Error(), "install btrfs-progs"
	}
	return f
}

func probeLoop() api.Finding {
	f := api.Finding{Name: "loop devices", State: "ok", Detail: "/dev/loop-control"}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		f.State, f.Detail, f.Remedy = "missing", err.Error(), "modprobe loop, and run the daemon as root"
		return f
	}
	control.Close()
	return f
}

func probeReserve(dir string) api.Finding {
	f := api.Finding{Name: "space reservation", State: "ok", Detail: "blocks of a loop file are reserved on " + dir}
	room, err := hostdisk.Room(dir)
	if err == nil && room < minSize {
		f.State, f.Detail = "missing", fmt.Sprintf("%s has room for %v, a pool needs %v", dir, room, minSize)
		f.Remedy = "free some space there, or choose another directory"
		return f
	}
	able, err := hostdisk.CanReserve(dir)
	if err != nil {
		f.State, f.Detail, f.Remedy = "missing", err.Error(), "make it writable for the daemon"
	} else if !able {
		f.State, f.Detail = "limited", dir+" can't reserve blocks: if that disk runs full, the pool turns read-only"
		f.Remedy = "keep space free there, or put the pool on ext4, xfs or btrfs"
	}
	return f
}

func probeQuota(native bool) api.Finding {
	f := api.Finding{Name: "btrfs simple quotas", State: "ok", Detail: "volume sizes are enforced with little cost"}
	_, err := os.Stat("/sys/fs/btrfs/features/simple_quota")
	switch {
	case err != nil:
		f.State = "limited"
		f.Detail = "volume sizes are enforced by full quota groups, which cost more and don't cover subvolumes that a guest makes"
		f.Remedy = "Linux 6.7 or newer"
	case native:
		f.Detail = "used if already enabled on this btrfs; else full quota groups, which don't cover subvolumes that a guest makes"
		f.Remedy = "btrfs quota enable --simple, if no kernel older than 6.7 will mount it"
		f.State = "limited"
	}
	return f
}
