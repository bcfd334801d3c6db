package cli

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) poolCmd() *cobra.Command {
	list := listVerb(a, "List storage pools", poolListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Pool, error] { return c.Pools(ctx) })
	show := showVerb(a, "Show one pool", "NAME", poolNames, func(ctx context.Context, c *client.Client, n string) (*api.Pool, error) { return c.Pool(ctx, n) }, a.describePool)
	create := createVerb(a, "Create a pool", "Volumes and the instances' roots live in pools.", settings.Pool,
		func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error {
			pool := api.Pool{Spec: api.PoolSpec{Driver: "btrfs"}}
			if err := p.Into(&pool); err != nil {
				return err
			}
			pool.Name = name
			_, err := c.CreatePool(ctx, &pool)
			return err
		})
	del := deleteVerb(a, "Delete empty pools", poolNames, func(ctx context.Context, c *client.Client, n string) error { return c.DeletePool(ctx, n) })
	return noun("pool", "Storage pools: where volumes live", list, show, create, del)
}

// amount is a column of bytes.
func amount[T any](head string, of func(T) api.Bytes) output.Column[T] {
	return output.Column[T]{Head: head, Right: true, Cell: func(v T) string { return sizeText(of(v)) }, Raw: func(v T) string { return fmt.Sprint(int64(of(v))) }}
}

func readyStyle(state string) output.Style {
	if strings.HasPrefix(state, "ready") {
		return output.Good
	}
	return output.Bad
}

func poolListing() output.Listing[api.Pool] {
	return output.Listing[api.Pool]{
		Name: func(p api.Pool) string { return p.Name },
		Columns: []output.Column[api.Pool]{
			{Head: "NAME", Flex: true, Cell: func(p api.Pool) string { return p.Name }},
			{Head: "DRIVER", Cell: func(p api.Pool) string { return p.Spec.Driver }},
			{Head: "STATE", Flex: true, Cell: func(p api.Pool) string { return p.Status.State }, Style: func(p api.Pool) output.Style { return readyStyle(p.Status.State) }},
			amount("USED", func(p api.Pool) api.Bytes { return p.Status.Used }),
			amount("TOTAL", func(p api.Pool) api.Bytes { return p.Status.Total }),
			{Head: "VOLUMES", Right: true, Cell: func(p api.Pool) string { return fmt.Sprint(p.Status.Volumes) }},
			{Head: "PATH", Extra: true, Flex: true, Cell: func(p api.Pool) string { return p.Status.Path }},
		},
	}
}

func (a *app) describePool(s *output.Sections, p *api.Pool) {
	s.Pair("Name", p.Name)
	s.Pair("ID", p.ID)
	s.Styled("State", p.Status.State, readyStyle(p.Status.State))
	s.Pair("Driver", p.Spec.Driver)
	s.Pair("Source", p.Spec.Source)
	s.Pair("Path", p.Status.Path)
	s.Pair("Created", a.ago(&p.Created))
	s.Each("Labels", pairs(p.Labels))
	s.Head("Space")
	s.Pair("Used", fmt.Sprintf("%s of %s", p.Status.Used, p.Status.Total))
	s.Pair("Limit", sizeText(p.Spec.Size))
	s.Pair("Volumes", fmt.Sprint(p.Status.Volumes))
	s.Pair("Sizes enforced by", p.Status.Quota)
	s.Pair("Reflinks", yes(p.Status.Reflink))
}

func (a *app) volumeCmd() *cobra.Command {
	list := listVerb(a, "List volumes", a.volumeListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Volume, error] { return c.Volumes(ctx) })
	show := showVerb(a, "Show one volume", "NAME", volumeNames, func(ctx context.Context, c *client.Client, n string) (*api.Volume, error) { return c.Volume(ctx, n) }, a.describeVolume)
	create := createVerb(a, "Create a volume", "A volume is a writable file tree that outlives instances; --volume brings it into one.", settings.Volume,
		func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error {
			var v api.Volume
			if err := p.Into(&v); err != nil {
				return err
			}
			v.Name = name
			_, err := c.CreateVolume(ctx, &v)
			return err
		})
	set := setVerb(a, "Change a volume", settings.Volume, volumeNames,
		func(ctx context.Context, c *client.Client, name string, p *settings.Patch) error {
			v, err := c.PatchVolume(ctx, name, 0, p)
			if err == nil {
				a.noteDisk(v)
			}
			return err
		})
	del := deleteVerb(a, "Delete volumes that no instance uses, and what is in them", volumeNames, func(ctx context.Context, c *client.Client, n string) error { return c.DeleteVolume(ctx, n) })
	return noun("volume", "Volumes: files that outlive instances", list, show, create, set, a.attachVolumeCmd(), a.detachVolumeCmd(), del)
}

// noteDisk tells when the guests of a volume don't find it as large as it is
// to be.
func (a *app) noteDisk(v *api.Volume) {
	if v.Status.Disk > 0 {
		a.note("%s: takes effect at the next start of %s: size %s -> %s", v.Name, strings.Join(v.Status.UsedBy, ", "), v.Status.Disk.Exact(), v.Spec.Size.Exact())
	}
}

func (a *app) volumeListing() output.Listing[api.Volume] {
	return output.Listing[api.Volume]{
		Name: func(v api.Volume) string { return v.Name },
		Columns: []output.Column[api.Volume]{
			{Head: "NAME", Flex: true, Cell: func(v api.Volume) string { return v.Name }},
			{Head: "POOL", Cell: func(v api.Volume) string { return cmp.Or(v.Spec.Pool, "default") }},
			amount("USED", func(v api.Volume) api.Bytes { return v.Status.Used }),
			amount("SIZE", func(v api.Volume) api.Bytes { return v.Spec.Size }),
			{Head: "USED BY", Flex: true, Cell: func(v api.Volume) string { return strings.Join(v.Status.UsedBy, " ") }},
			{Head: "AGE", Right: true, Cell: func(v api.Volume) string { return a.age(v.Created) }, Raw: func(v api.Volume) string { return stamp(v.Created) }},
			{Head: "LABELS", Extra: true, Flex: true, Cell: func(v api.Volume) string { return strings.Join(pairs(v.Labels), " ") }},
		},
	}
}

func (a *app) describeVolume(s *output.Sections, v *api.Volume) {
	s.Pair("Name", v.Name)
	s.Pair("ID", v.ID)
	s.Pair("Pool", cmp.Or(v.Spec.Pool, "default"))
	s.Pair("Created", a.ago(&v.Created))
	s.Each("Labels", pairs(v.Labels))
	s.Head("Space")
	s.Pair("Used", v.Status.Used.String())
	s.Pair("Size", sizeText(v.Spec.Size))
	s.Head("Used by")
	if v.Status.Disk > 0 {
		s.Pair("For its guest", v.Status.Disk.String()+" until its next start")
	}
	s.Each("Instance", v.Status.UsedBy)
}
