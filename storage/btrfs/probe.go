package btrfs

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
	"github.com/cleave-project/cleave/storage/internal/probe"
)

// Probe tells what this host can do for a pool in dir, which need not exist
// yet. It changes nothing.
func Probe(_ context.Context, dir string) []api.Finding {
	all := []api.Finding{probeKernel()}
	dir = hostdisk.Existing(dir)
	native, err := isNative(dir)
	if err == nil && native {
		all = append(all, api.Finding{Area: "storage", Name: "btrfs pool", State: "ok", Detail: dir + " is on a btrfs: volumes are its subvolumes"})
	} else {
		all = append(all, probeRoom(dir), probe.Reserve(dir, "the pool turns read-only"), probe.Loop(),
			probe.Tool("mkfs.btrfs", "install btrfs-progs, or use pools of driver dir"))
	}
	return append(all, probeQuota(native))
}

func probeKernel() api.Finding {
	f := api.Finding{Area: "storage", Name: "btrfs", State: "ok", Detail: "in the kernel"}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !bytes.Contains(known, []byte("\tbtrfs\n")) {
		f.State, f.Detail = "limited", "not loaded; the kernel loads its module on first use where it is installed"
		f.Remedy = "modprobe btrfs; without it use pools of driver dir"
	}
	return f
}

func probeRoom(dir string) api.Finding {
	f := api.Finding{Area: "storage", Name: "room for a btrfs pool", State: "ok"}
	room, err := hostdisk.Room(dir)
	switch {
	case err != nil:
		f.State, f.Detail = "missing", err.Error()
	case room < minSize:
		f.State, f.Detail = "missing", fmt.Sprintf("%s has room for %v, a pool needs %v", dir, room, minSize)
		f.Remedy = "free some space there, or choose another directory"
	default:
		f.Detail = fmt.Sprintf("%v on the disk of %s", room, dir)
	}
	return f
}

func probeQuota(native bool) api.Finding {
	f := api.Finding{Area: "storage", Name: "btrfs simple quotas", State: "ok", Detail: "volume sizes are enforced with little cost"}
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
