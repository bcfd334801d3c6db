package control

import (
	"cmp"
	"context"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network"
)

// Stats measures one running instance.
func (c *Controller) Stats(ctx context.Context, project, name string) (api.Stats, error) {
	in, err := c.Instance(project, name)
	if err != nil {
		return api.Stats{}, err
	}
	if c.live(in.ID) == nil {
		return api.Stats{}, notRunning(in)
	}
	counters, err := c.net.Counters(links(in))
	if err != nil {
		return api.Stats{}, err
	}
	return c.measure(ctx, in, counters)
}

// AllStats measures every running instance of a project, or of all if it is
// empty. One that ends meanwhile is left out.
func (c *Controller) AllStats(ctx context.Context, project string) ([]api.Stats, error) {
	var running []*api.Instance
	var all []string
	for _, in := range c.instances.All() {
		if (project == "" || in.Project == project) && c.live(in.ID) != nil {
			running = append(running, in)
			all = append(all, links(in)...)
		}
	}
	counters, err := c.net.Counters(all)
	if err != nil {
		return nil, err
	}
	list := []api.Stats{}
	for _, in := range running {
		if s, err := c.measure(ctx, in, counters); err == nil {
			list = append(list, s)
		}
	}
	return list, nil
}

func (c *Controller) measure(ctx context.Context, in *api.Instance, counters map[string]network.Counters) (api.Stats, error) {
	e, err := c.engineFor(in.Spec.Kind)
	if err != nil {
		return api.Stats{}, err
	}
	s, err := e.Stats(ctx, in.ID)
	if err != nil {
		return api.Stats{}, c.naming(err)
	}
	s.ID, s.Name, s.Project, s.Time = in.ID, in.Name, in.Project, time.Now().UTC()
	s.MemoryLimit = resources(in).Memory
	d, err := c.driver(cmp.Or(in.Spec.Root.Pool, defaultPool))
	if err == nil {
		s.Disk, s.DiskLimit, err = d.Usage(ctx, rootVolume(in))
	}
	if err != nil {
		return api.Stats{}, err
	}
	for _, l := range links(in) {
		n := counters[l]
		s.RxBytes += n.RxBytes
		s.TxBytes += n.TxBytes
		s.RxPackets += n.RxPackets
		s.TxPackets += n.TxPackets
		s.Dropped += n.Dropped
	}
	return s, nil
}
