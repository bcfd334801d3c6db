// Package dhcp tells guests their IPv4 addresses (RFC 2131), for systems that
// come to know them in no other way. It has no addresses to give away: it
// answers stations that somebody knows the address of, always with the same,
// and keeps silent to all others.
//
// It listens on bridges by packet sockets, which no firewall of the host
// stands before, and which take nothing from other servers of the host. That
// a frame comes from the station that it bears the address of, and how many
// come at most, is seen to by the packet filter of the bridge.
//
// All methods may be called from any goroutine.
package dhcp

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// Options are those of a Server.
type Options struct {
	// Find tells what a station of a network is to be told. It must not call
	// the Server.
	Find func(network string, mac net.HardwareAddr) (Lease, bool)
	Log  *slog.Logger
}

// Network is one bridge that is served.
type Network struct {
	ID      string
	Index   int          // of the bridge
	Gateway netip.Prefix // the bridge's address, which also answers DNS
	Domain  string
}

// Lease is what one station is told.
type Lease struct {
	Addr     netip.Addr
	Hostname string // none if empty
	MTU      int
}

// Server answers on any number of bridges.
type Server struct {
	find func(network string, mac net.HardwareAddr) (Lease, bool)
	log  *slog.Logger

	mu       sync.Mutex
	networks map[string]*listener
	closed   bool
}

// New makes a server without networks.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{find: o.Find, log: o.Log, networks: map[string]*listener{}}
}

// Serve begins to answer on a network, or goes on with what has changed in
// it.
func (s *Server) Serve(n Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if old := s.networks[n.ID]; old != nil {
		if old.network == n {
			return nil
		}
		delete(s.networks, n.ID)
		old.close()
	}
	l, err := s.listen(n)
	if err != nil {
		return fmt.Errorf("serve DHCP on %s: %w", n.Gateway, err)
	}
	s.networks[n.ID] = l
	return nil
}

// Stop ends the service of a network.
func (s *Server) Stop(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.networks[id]; l != nil {
		delete(s.networks, id)
		l.close()
	}
}

// Close ends all service and returns when no request is being answered.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for id, l := range s.networks {
		delete(s.networks, id)
		l.close()
	}
}
