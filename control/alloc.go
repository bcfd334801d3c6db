package control

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/cleave-project/cleave/api"
)

// idsPerGuest is how many host ids an instance owns: all that a file in an
// image may carry.
const idsPerGuest = 65536

// guestsPerScope bounds the id ranges of one daemon.
const guestsPerScope = 4096

// allocator hands out host ids and addresses. What is taken follows from the
// records; it is kept beside them so that a launch needn't read them all.
// The lock is held from choosing until the record is committed or given up.
type allocator struct {
	sync.Mutex
	base  uint32
	uids  map[uint32]string
	addrs map[netip.Addr]string
}

func (a *allocator) init(c *Controller) {
	a.base, a.uids, a.addrs = c.UIDBase, map[uint32]string{}, map[netip.Addr]string{}
	for _, in := range c.instances.All() {
		a.take(in)
	}
}

func (a *allocator) take(in *api.Instance) {
	a.uids[in.Status.UIDBase] = in.ID
	a.takePorts(in.ID, in.Status.NICs)
}

func (a *allocator) takePorts(id string, ports []api.Port) {
	for _, p := range ports {
		for _, s := range []string{p.IPv4, p.IPv6} {
			if pre, err := netip.ParsePrefix(s); err == nil {
				a.addrs[pre.Addr()] = id
			}
		}
	}
}

// release frees what in held. The caller holds the lock.
func (a *allocator) release(in *api.Instance) {
	if a.uids[in.Status.UIDBase] == in.ID {
		delete(a.uids, in.Status.UIDBase)
	}
	a.releasePorts(in.ID, in.Status.NICs)
}

func (a *allocator) releasePorts(id string, ports []api.Port) {
	for _, p := range ports {
		for _, s := range []string{p.IPv4, p.IPv6} {
			if pre, err := netip.ParsePrefix(s); err == nil && a.addrs[pre.Addr()] == id {
				delete(a.addrs, pre.Addr())
			}
		}
	}
}

// uidRange finds a free range of host ids.
func (a *allocator) uidRange() (uint32, error) {
	for i := range uint32(guestsPerScope) {
		if base := a.base + i*idsPerGuest; a.uids[base] == "" {
			return base, nil
		}
	}
	return 0, api.Errorf(api.CodeNoResources, "all %d ranges of user ids are taken", guestsPerScope).WithHint("delete instances that are no longer needed")
}

// assign chooses ids and addresses for a new instance and writes them to its
// status. On success the caller holds what in.Status says.
func (c *Controller) assign(in *api.Instance) error {
	base, err := c.alloc.uidRange()
	if err != nil {
		return err
	}
	in.Status.UIDBase = base
	if in.Status.NICs, err = c.portsFor(in, nil, false); err != nil {
		return err
	}
	c.alloc.take(in)
	return nil
}

func sameAddr(prefix string, a netip.Addr) bool {
	p, err := netip.ParsePrefix(prefix)
	return err == nil && p.Addr() == a
}

// macOf derives a locally administered unicast address from an instance's
// id, so that it stays over restarts and differs between hosts.
func macOf(id string, n int) net.HardwareAddr {
	h := sha256.Sum256(fmt.Appendf(nil, "%s/%d", id, n))
	return net.HardwareAddr{0x02, h[0], h[1], h[2], h[3], h[4]}
}
