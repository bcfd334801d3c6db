// Package network makes virtual switches with subnets, DNS, port forwards
// and policy out of the kernel's bridges, veth pairs and nftables, in tables
// and links of its own, beside whatever else manages the host's network.
//
// Desired state is handed over whole and compared with what the kernel has;
// only the difference is written. Guests keep their network while the daemon
// is down, except for DNS.
package network

import (
	"context"
	"log/slog"
	"net"
	"net/netip"

	"github.com/cleave-project/cleave/api"
)

// Options say where a Manager works.
type Options struct {
	// Scope tells the daemons of one host apart; empty for the default one.
	Scope string
	// Dir keeps what must survive a reboot of the daemon, Run what must not
	// survive one of the host.
	Dir, Run string
	// ResolvConf names the host's resolvers; /etc/resolv.conf if empty.
	ResolvConf string
	Log        *slog.Logger
}

// Port is a guest's port on a network.
type Port struct {
	Network    string // id of the network
	Instance   string // id of the instance
	Link       string // the host's end
	Name       string // in the guest, like eth0
	MAC        net.HardwareAddr
	IPv4, IPv6 netip.Addr // the zero Addr for none
	MTU        int        // the network's if 0
	In, Out    api.Bytes  // bytes per second as the guest sees them; 0 for no limit
}

// Forward sends a port of the host to a guest.
type Forward struct {
	HostIP             netip.Addr // zero or unspecified for all addresses
	HostPort           uint16
	Protocol           string     // tcp or udp
	GuestIP4, GuestIP6 netip.Addr // the zero Addr for none
	GuestPort          uint16
}

// Counters are what went through a port, from the guest's point of view.
type Counters struct {
	RxBytes, TxBytes, RxPackets, TxPackets uint64
	Dropped                                uint64 // both ways
}

// Manager is the network of one scope of this host.
type Manager struct{}

var errSkeleton = api.Errorf(api.CodeUnsupported, "networks are not supported by this build")

// Open takes over what an earlier Manager of the scope left in the kernel.
func Open(ctx context.Context, o Options) (*Manager, error) { return nil, errSkeleton }

// Ensure makes n real, or finds that it is, and returns its status.
func (m *Manager) Ensure(ctx context.Context, n *api.Network) (api.NetworkStatus, error) {
	return api.NetworkStatus{}, errSkeleton
}

// Remove takes a network away; it is no error when there is none.
func (m *Manager) Remove(ctx context.Context, id string) error { return errSkeleton }

// Attach makes p, with its inner end in the network namespace of pid.
func (m *Manager) Attach(ctx context.Context, p Port, pid int) error { return errSkeleton }

// Detach takes p away.
func (m *Manager) Detach(ctx context.Context, p Port) error { return errSkeleton }

// SetRates changes the limits of a live port to p.In and p.Out.
func (m *Manager) SetRates(ctx context.Context, p Port) error { return errSkeleton }

// SetForwards replaces the forwards of an instance; nil removes them.
func (m *Manager) SetForwards(ctx context.Context, instance string, f []Forward) error {
	return errSkeleton
}

// SetNames replaces all names of a network.
func (m *Manager) SetNames(network string, names map[string][]netip.Addr) {}

// SetName adds or replaces one name of a network.
func (m *Manager) SetName(network, name string, addrs ...netip.Addr) {}

// DeleteName removes one name of a network.
func (m *Manager) DeleteName(network, name string) {}

// Allocate chooses addresses for a new port of n.
func (m *Manager) Allocate(n *api.Network, used func(netip.Addr) bool, fixed4, fixed6 string) (v4, v6 netip.Prefix, err error) {
	return netip.Prefix{}, netip.Prefix{}, errSkeleton
}

// Gateway is n's own address in each family, the zero Addr for none.
func (m *Manager) Gateway(n *api.Network) (v4, v6 netip.Addr) { return netip.Addr{}, netip.Addr{} }

// ResolvConf is what guests of n have in /etc/resolv.conf.
func ResolvConf(n *api.Network) string { return "" }

// Counters reads the counters of the links that exist.
func (m *Manager) Counters(links []string) (map[string]Counters, error) { return nil, errSkeleton }

// Sweep removes ports and forwards that are not wanted and makes good what
// is missing.
func (m *Manager) Sweep(ctx context.Context, keep []Port, forwards map[string][]Forward) error {
	return errSkeleton
}

// Probe tells what this host can do for networks.
func (m *Manager) Probe(ctx context.Context) []api.Finding { return nil }

// Close ends DNS; guests keep the rest.
func (m *Manager) Close() error { return nil }

// Destroy removes everything of the scope from the kernel.
func (m *Manager) Destroy(ctx context.Context) error { return errSkeleton }
