// Package network makes virtual switches with subnets, DNS, port forwards
// and policy out of the kernel's bridges, veth pairs and nftables, in tables
// and links of its own, beside whatever else manages the host's network.
//
// Desired state is handed over whole and compared with what the kernel has;
// only the difference is written. Guests keep their network while the daemon
// is down, except for DNS and DHCP. A new daemon calls Ensure for every network and
// then Sweep once, with the ports and forwards that are wanted.
//
// A network is a bridge that holds the gateway addresses. A guest may send
// from its own addresses only, reaches its gateway's DNS and DHCP and nothing else
// of the host, guests of its own network, ports that are published, and what
// the host routes to. Guests of other networks and the world reach it by
// published ports only (and the world reaches all of a network without NAT).
// Published ports also answer on 127.0.0.1 of the host. On ::1 they can't,
// for want of route_localnet in IPv6: connections are refused there, so that
// clients go on to 127.0.0.1.
//
// A bridge of Linux has room for 1023 ports (BR_PORT_BITS): more guests need
// a second network.
//
// All methods of a Manager may be called from any goroutine, but calls for
// one port, or for the forwards of one instance, must not overlap. Attach,
// OpenTap, Detach, SetRates and SetForwards wait for a few kernel
// transactions, some ms in all; Ensure, Remove, Sweep and Destroy take turns
// and may take longer.
package network

import (
	"log/slog"
	"net"
	"net/netip"

	"github.com/cleave-project/cleave/api"
)

// Options say where a Manager works.
type Options struct {
	// Scope tells the daemons of one host apart: at most six characters,
	// empty for the default one.
	Scope string
	// Dir and Run are the daemon's directories. Nothing is kept there today:
	// networks live in their resources, and what was changed on the host
	// in a file of the host.
	Dir, Run string
	// ResolvConf names the host's resolvers; /etc/resolv.conf if empty.
	ResolvConf string
	Log        *slog.Logger
}

// Port is a guest's port on a network.
type Port struct {
	Network    string // id of the network
	Instance   string // id of the instance
	Link       string // the host's end, at most 14 characters
	Name       string // in the guest, like eth0
	MAC        net.HardwareAddr
	IPv4, IPv6 netip.Addr // the zero Addr for none
	MTU        int        // the network's if 0
	In, Out    api.Bytes  // bytes per second as the guest sees them; 0 for no limit
	Hostname   string     // told by DHCP; empty for none
}

// Forward sends a port of the host to a guest.
type Forward struct {
	// HostIP is one address of the host. The zero Addr means all, of both
	// families; 0.0.0.0 and :: mean all of one.
	HostIP             netip.Addr
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
