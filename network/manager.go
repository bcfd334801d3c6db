package network

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/dhcp"
	"github.com/cleave-project/cleave/network/dns"
	"github.com/cleave-project/cleave/network/link"
	"github.com/cleave-project/cleave/network/nft"
)

// Manager is the network of one scope of this host.
type Manager struct {
	scope  string
	groups groups
	log    *slog.Logger
	resolv string
	ipv6   bool // the kernel has it at all

	rt     *link.Conn
	tables *nft.Tables
	names  *dns.Server
	leases *dhcp.Server
	ledger *ledger

	stop   context.CancelFunc
	work   sync.WaitGroup
	closed sync.Once
	// Of capacity 1 each: some links should have gone by soon; other
	// firewalls have changed.
	reap, doors chan struct{}

	// setup lets calls that change more than one port or instance take turns.
	setup sync.Mutex
	// compiled is held for reading while one port's or instance's elements
	// go into the tables, for writing while all of them are compared.
	compiled sync.RWMutex

	mu       sync.Mutex // guards what follows
	networks map[string]*bridge
	ports    map[string]*port         // by link
	forwards map[string][]heldForward // by instance
	leaving  map[string]int           // links, by name, that go with their namespace
	cursors  map[cursor]uint64        // the host number last given
}

// cursor says of what Allocate remembers where it was.
type cursor struct{ network, family string }

// port is a port that exists.
type port struct {
	Port
	index int // of the host's end
}

// groups are the kernel's link groups that tell ours from other links.
type groups struct{ ports, bridges uint32 }

func newGroups(scope string) groups {
	h := fnv.New32a()
	_, _ = h.Write([]byte(nft.TableName(scope)))
	base := h.Sum32()&0x3ffffffe | 0x40000000
	return groups{ports: base, bridges: base + 1}
}

// Open takes over what an earlier Manager of the scope left in the kernel.
// It changes nothing yet.
func Open(_ context.Context, o Options) (*Manager, error) {
	if len(o.Scope) > 6 {
		return nil, api.Errorf(api.CodeInvalid, "network scope %q: longer than six characters", o.Scope)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	l, err := openLedger()
	if err != nil {
		return nil, err
	}
	rt, err := link.Dial()
	if err != nil {
		return nil, err
	}
	g := newGroups(o.Scope)
	tables, err := nft.Open(o.Scope, g.ports)
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	_, noIPv6 := os.Stat("/proc/sys/net/ipv6")
	m := &Manager{
		scope: o.Scope, groups: g, log: o.Log, resolv: o.ResolvConf, ipv6: noIPv6 == nil,
		rt: rt, tables: tables, names: dns.New(dns.Options{ResolvConf: o.ResolvConf, Log: o.Log}), ledger: l,
		reap: make(chan struct{}, 1), doors: make(chan struct{}, 1),
		networks: map[string]*bridge{}, ports: map[string]*port{}, forwards: map[string][]heldForward{},
		leaving: map[string]int{}, cursors: map[cursor]uint64{},
	}
	m.leases = dhcp.New(dhcp.Options{Find: m.lease, Log: o.Log})
	var ctx context.Context
	ctx, m.stop = context.WithCancel(context.Background())
	m.work.Go(func() { m.watch(ctx) })
	m.work.Go(func() { m.reaper(ctx) })
	m.work.Go(func() { m.doorkeeper(ctx) })
	return m, nil
}

// Close ends DNS and DHCP; guests keep the rest. Ports of the host that are published
// are no longer reserved.
func (m *Manager) Close() (err error) {
	m.closed.Do(func() {
		m.rest()
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, held := range m.forwards {
			for _, h := range held {
				h.release()
			}
		}
		err = errors.Join(m.tables.Close(), m.rt.Close())
	})
	return err
}

// rest ends everything that goes on by itself.
func (m *Manager) rest() {
	m.stop()
	m.names.Close()
	m.leases.Close()
	m.work.Wait()
}

// Destroy removes everything of the scope from the kernel, guests' ports
// included, and closes the Manager. Settings of the host go back to what
// they were when no other daemon needs them.
func (m *Manager) Destroy(_ context.Context) error {
	m.setup.Lock()
	defer m.setup.Unlock()
	m.rest()
	return errors.Join(
		m.rt.DeleteGroup(m.groups.ports),
		m.rt.DeleteGroup(m.groups.bridges),
		m.closeDoors(nil),
		m.tables.Delete(),
		m.ledger.release(m.scope, m.othersRoute),
		m.Close(),
	)
}

// elements are all that the tables should hold. m.compiled is held.
func (m *Manager) elements() []nft.Element {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []nft.Element
	for _, n := range m.networks {
		all = append(all, n.elements()...)
	}
	for _, p := range m.ports {
		all = append(all, p.elements()...)
	}
	for _, held := range m.forwards {
		for _, h := range held {
			all = append(all, h.elements()...)
		}
	}
	return all
}

// restore makes the tables hold what they should.
func (m *Manager) restore() error {
	m.compiled.Lock()
	defer m.compiled.Unlock()
	if present, err := m.tables.Present(); err != nil || !present {
		if err := errors.Join(err, m.tables.Load()); err != nil {
			return err
		}
	}
	changed, err := m.tables.Reconcile(m.elements())
	if changed > 0 {
		m.log.Info("network: tables corrected", "elements", changed)
	}
	return err
}

// watch puts right what others do to the packet filter, until ctx ends:
// many a firewall begins by flushing all rules, and Docker makes dropping
// the default for everything that is forwarded.
func (m *Manager) watch(ctx context.Context) {
	err := m.tables.Watch(ctx, func(lost bool) {
		if !lost {
			notify(m.doors)
			return
		}
		m.mu.Lock()
		idle := len(m.networks) == 0
		m.mu.Unlock()
		if idle {
			return
		}
		m.log.Warn("network: somebody deleted our nftables; writing them anew")
		if err := m.restore(); err != nil {
			m.log.Error("network: restore nftables", "error", err)
		}
	})
	if err != nil {
		m.log.Error("network: changes of nftables go unnoticed", "error", err)
	}
}

// notify leaves a word for who listens to c, unless there is one.
func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// bridgeNames lists the bridges of all networks. m.mu is held.
func (m *Manager) bridgeNames() []string {
	var names []string
	for _, n := range m.networks {
		names = append(names, n.name)
	}
	slices.Sort(names)
	return names
}

// SetNames replaces all names of a network, which may not exist yet.
func (m *Manager) SetNames(network string, names map[string][]netip.Addr) {
	m.names.SetNames(network, names)
}

// SetName adds or replaces one name of a network.
func (m *Manager) SetName(network, name string, addrs ...netip.Addr) {
	m.names.SetName(network, name, addrs)
}

// DeleteName removes one name of a network.
func (m *Manager) DeleteName(network, name string) {
	m.names.SetName(network, name, nil)
}
