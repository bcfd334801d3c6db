// Package dhcp tells guests their IPv4 addresses (RFC 2131), for systems that
// come to know them in no other way. It answers stations that it was told of
// and keeps silent to all others; it has no addresses to give away.
//
// All methods may be called from any goroutine.
package dhcp

import (
	"log/slog"
	"net"
	"net/netip"
)

// Options are those of a Server.
type Options struct {
	Log *slog.Logger
}

// Network is one bridge that is served.
type Network struct {
	ID      string
	Bridge  string
	MAC     net.HardwareAddr // the bridge's
	Gateway netip.Prefix     // with the subnet's length
	Domain  string
	MTU     int
}

// Lease is what one station is told.
type Lease struct {
	MAC      net.HardwareAddr
	Addr     netip.Addr
	Hostname string // none if empty
	MTU      int    // the network's if 0
}

// Server answers on any number of bridges.
type Server struct{}

// New makes a server without networks.
func New(o Options) *Server { return &Server{} }

// Serve begins to answer on a network, or goes on with what has changed in
// it. Leases that were set before are kept.
func (s *Server) Serve(n Network) error { return nil }

// Stop forgets a network with its leases.
func (s *Server) Stop(id string) {}

// SetLease adds or replaces what a station of a network is told.
func (s *Server) SetLease(id string, l Lease) {}

// DeleteLease forgets a station.
func (s *Server) DeleteLease(id string, mac net.HardwareAddr) {}

// Close ends all service.
func (s *Server) Close() {}
