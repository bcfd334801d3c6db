package dir

import (
	"context"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/internal/hostdisk"
	"github.com/cleave-project/cleave/storage/internal/probe"
)

// Probe tells what this host can do for a pool in dir, which need not exist
// yet. It changes nothing.
func Probe(_ context.Context, dir string) []api.Finding {
	dir = hostdisk.Existing(dir)
	projects, err := openProjects(dir)
	if err == nil && projects != nil {
		projects.Close()
		return []api.Finding{{
			Area: "storage", Name: "project quotas", State: "ok",
			Detail: "volume sizes are enforced by project quotas of " + dir,
		}}
	}
	return []api.Finding{
		{
			Area: "storage", Name: "project quotas", State: "limited",
			Detail: "off on " + dir + ": a volume with a size is a file of that size, all of it reserved, with a file system of its own",
			Remedy: "mount it with prjquota (ext4 with the project feature, xfs)",
		},
		probe.Tool("mkfs.ext4", "install e2fsprogs; without it volumes can't have a size"),
		probe.Loop(),
		probe.Reserve(dir, "guests lose writes"),
	}
}
