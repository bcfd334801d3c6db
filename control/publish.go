package control

import (
	"cmp"
	"context"
	"net/netip"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network"
)

// forwards are the instance's published ports.
func (c *Controller) forwards(in *api.Instance) []network.Forward {
	var list []network.Forward
	if len(in.Status.NICs) == 0 {
		return nil
	}
	first := in.Status.NICs[0]
	for _, p := range in.Spec.Publish {
		ip, _ := netip.ParseAddr(p.HostIP)
		list = append(list, network.Forward{
			HostIP: ip, HostPort: uint16(p.HostPort), Protocol: cmp.Or(p.Protocol, "tcp"),
			GuestIP4: addrOf(first.IPv4), GuestIP6: addrOf(first.IPv6), GuestPort: uint16(p.GuestPort),
		})
	}
	return list
}

// publish opens the instance's ports on the host. Who has one already is told
// by name here; what else holds ports, the network finds out.
func (c *Controller) publish(ctx context.Context, in *api.Instance) error {
	forwards := c.forwards(in)
	for _, other := range c.instances.All() {
		if other.ID == in.ID || len(other.Spec.Publish) == 0 || c.live(other.ID) == nil {
			continue
		}
		for _, theirs := range c.forwards(other) {
			for _, f := range forwards {
				if f.Overlaps(theirs) {
					return api.Errorf(api.CodeConflict, "publish %s: instance %q has it", f, other.Name).
						WithField("spec.publish").WithHint("choose another port of the host, or stop %s", other.Name)
				}
			}
		}
	}
	return c.net.SetForwards(ctx, in.ID, forwards)
}
