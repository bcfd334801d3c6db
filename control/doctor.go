package control

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Doctor says what this host can do, what it can't, and what would change
// that. Everything is tried, not guessed.
func (c *Controller) Doctor(ctx context.Context) []api.Finding {
	findings := c.hostFindings()
	for _, kind := range kinds {
		w := c.walls[kind]
		if w == nil {
			findings = append(findings, api.Finding{Area: string(kind), Name: "engine", State: "missing", Detail: "this edition has no engine for the kind " + string(kind)})
			continue
		}
		caps, f := w.look(ctx, true)
		state, detail, remedy := "ok", w.Name(), ""
		if !caps.Available {
			state = "missing"
			if caps.Reason != nil {
				detail, remedy = caps.Reason.Message, caps.Reason.Hint
			}
		}
		findings = append(findings, api.Finding{Area: string(kind), Name: "engine", State: state, Detail: detail, Remedy: remedy})
		for _, found := range f {
			found.Area = string(kind) // whatever its engine is called
			findings = append(findings, found)
		}
		if kind != api.KindContainer && caps.Available {
			for _, arch := range caps.Archs {
				findings = append(findings, c.kernelFinding(kind, arch))
			}
		}
	}
	pools := filepath.Join(c.Data, "pools")
	for _, name := range slices.Sorted(maps.Keys(c.Drivers)) {
		for _, f := range c.Drivers[name].Probe(ctx, pools) {
			if !slices.Contains(findings, f) { // drivers have needs in common
				findings = append(findings, f)
			}
		}
	}
	findings = append(findings, c.poolFindings(ctx)...)
	findings = append(findings, c.net.Probe(ctx)...)
	return append(findings, toolFinding("images", "image build", "mmdebstrap", "install the package mmdebstrap"))
}

func (c *Controller) hostFindings() []api.Finding {
	f := []api.Finding{{Area: "host", Name: "kernel", State: "ok", Detail: kernelRelease()}}
	space := api.Finding{Area: "host", Name: "disk space", State: "ok"}
	var st unix.Statfs_t
	if err := unix.Statfs(c.Data, &st); err == nil {
		free := api.Bytes(int64(st.Bavail) * st.Bsize)
		space.Detail = fmt.Sprintf("%s free in %s", free, c.Data)
		if free < 2*api.GiB {
			space.State, space.Remedy = "limited", "free some space, or move the data directory to a larger disk"
		}
	}
	return append(f, space)
}

func (c *Controller) poolFindings(ctx context.Context) []api.Finding {
	var f []api.Finding
	pools, err := c.Pools(ctx)
	if err != nil {
		return nil
	}
	for _, p := range pools {
		one := api.Finding{Area: "storage", Name: "pool " + p.Name, State: "ok", Detail: fmt.Sprintf("%s, %s of %s used, sizes held by %s", p.Spec.Driver, p.Status.Used, p.Status.Total, p.Status.Quota)}
		if p.Status.State != "ready" {
			one.State, one.Detail = "missing", p.Status.State
		}
		f = append(f, one)
	}
	return f
}

func toolFinding(area, name, tool, remedy string) api.Finding {
	if path, err := exec.LookPath(tool); err == nil {
		return api.Finding{Area: area, Name: name, State: "ok", Detail: path}
	}
	return api.Finding{Area: area, Name: name, State: "missing", Detail: tool + " is not installed", Remedy: remedy}
}
