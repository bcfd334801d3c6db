package network

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sweep makes the host hold the ports and forwards that are wanted, and no
// others: links, elements of the tables, neighbours, reservations, bridges
// of networks that are gone. Ensure has been called for every network. What
// can't be made again without its guest, a link that is missing say, is left
// out; forwards whose port on the host is taken by now are kept, and said to
// be so in the error. Everything else is done in spite of errors.
func (m *Manager) Sweep(ctx context.Context, keep []Port, forwards map[string][]Forward) error {
	m.setup.Lock()
	defer m.setup.Unlock()
	links, err := m.rt.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list links: %w", err)
	}
	var errs []error
	m.compiled.Lock()
	remove := m.adopt(links, keep)
	errs = append(errs, m.adoptForwards(forwards))
	m.compiled.Unlock()

	for _, name := range remove {
		errs = append(errs, m.rt.Delete(name))
	}
	m.mu.Lock()
	known := m.bridgeNames()
	ports := make([]port, 0, len(m.ports))
	for _, p := range m.ports {
		ports = append(ports, *p)
	}
	m.mu.Unlock()
	errs = append(errs,
		m.deleteBridges(func(a *netlink.LinkAttrs) bool { return !slices.Contains(known, a.Name) }),
		m.restore(), m.sweepNeighbours(ports), m.openDoors(known), m.closeDoors(known))
	for _, p := range ports {
		errs = append(errs, m.reconnect(p))
	}
	return errors.Join(errs...)
}

// adopt takes the wanted ports that exist for its own, and returns the names
// of links that are ours and not wanted.
func (m *Manager) adopt(links []netlink.Link, keep []Port) (remove []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := map[string]Port{}
	for _, p := range keep {
		if b := m.networks[p.Network]; b != nil && p.validate(b) == nil {
			wanted[p.Link] = p
		}
	}
	adopted := map[string]*port{}
	var shapers []string
	for _, l := range links {
		a := l.Attrs()
		if a.Group != m.groups.ports {
			continue
		}
		p, ok := wanted[a.Name]
		switch {
		case l.Type() == "ifb":
			shapers = append(shapers, a.Name)
		case ok && a.MasterIndex == m.networks[p.Network].index:
			adopted[a.Name] = &port{Port: p, index: a.Index}
		default:
			remove = append(remove, a.Name)
		}
	}
	for _, name := range shapers {
		if p := adopted[name[:len(name)-1]]; p == nil || p.Out == 0 {
			remove = append(remove, name)
		}
	}
	m.ports = adopted
	return remove
}

// reconnect repeats for a port that was adopted what Attach did with it.
func (m *Manager) reconnect(p port) error {
	b, err := m.bridgeOf(p.Port)
	if err != nil {
		return err
	}
	if err := m.introduce(b, p.Port, p.index); err != nil {
		return err
	}
	// Limits may have been changed while nobody could tell the kernel.
	return errors.Join(m.rt.Limit(p.index, uint64(p.In)), m.limitOut(p.index, p.Port))
}

// adoptForwards takes over all forwards; those that are new are reserved.
// m.compiled is held.
func (m *Manager) adoptForwards(forwards map[string][]Forward) error {
	m.mu.Lock()
	old := m.forwards
	m.forwards = map[string][]heldForward{}
	m.mu.Unlock()
	var errs []error
	for instance, wanted := range forwards {
		var held []heldForward
		for _, f := range wanted {
			if err := errors.Join(f.validate(), m.heldByOther(instance, f)); err != nil {
				errs = append(errs, err)
				continue
			}
			h := heldForward{Forward: f}
			if i := indexHostEnd(old[instance], f); i >= 0 {
				h.reservation = old[instance][i].reservation
				old[instance] = slices.Delete(old[instance], i, i+1)
			} else {
				r, err := reservePort(f)
				h.reservation, errs = r, append(errs, err)
			}
			held = append(held, h)
		}
		m.mu.Lock()
		m.forwards[instance] = held
		m.mu.Unlock()
	}
	for _, rest := range old {
		for _, h := range rest {
			h.release()
		}
	}
	return errors.Join(errs...)
}

// sweepNeighbours removes permanent neighbours of our bridges that aren't
// those of a port.
func (m *Manager) sweepNeighbours(ports []port) error {
	m.mu.Lock()
	bridges := map[int]bool{}
	for _, b := range m.networks {
		bridges[b.index] = true
	}
	m.mu.Unlock()
	wanted := map[string]bool{}
	for _, p := range ports {
		for _, a := range p.addrs() {
			wanted[a.String()] = true
		}
	}
	var errs []error
	for index := range bridges {
		neighbours, err := m.rt.NeighList(index, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range neighbours {
			if n.State&netlink.NUD_PERMANENT == 0 || wanted[n.IP.String()] {
				continue
			}
			if err := m.rt.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove neighbour %s: %w", n.IP, err))
			}
		}
	}
	return errors.Join(errs...)
}
