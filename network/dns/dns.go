// Package dns answers the guests' name queries: the names and addresses of
// their own network from memory, everything else by asking the host's
// resolvers.
//
// Each network is a zone, served over UDP and TCP (RFC 7766) on port 53 of
// its gateway addresses, which need not exist yet. Guests are hostile: what
// one of them may occupy is bounded, and no answer to one makes another
// wait. Queries from the host itself get names of the zone only and are
// never sent on, so that a host whose resolver asks us can't make a loop.
//
// All methods may be called from any goroutine.
package dns

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Options say where a Server finds what isn't its own.
type Options struct {
	ResolvConf string // names the host's resolvers; read anew when it changes
	Log        *slog.Logger
}

// Zone is a network as the server sees it.
type Zone struct {
	ID       string
	Domain   string // without dots at its ends
	Gateways []netip.Addr
	Subnets  []netip.Prefix
}

// Server answers for any number of zones.
type Server struct {
	log      *slog.Logger
	upstream *upstream
	limits   *limits

	// gateways are the addresses of all zones. Apart from mu, which may be
	// held while queries that look here are waited for.
	gateways atomic.Pointer[[]netip.Addr]

	mu     sync.Mutex
	zones  map[string]*zone
	closed bool
}

// New makes a server without zones.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: o.Log, limits: newLimits(), zones: map[string]*zone{}}
	s.upstream = &upstream{path: o.ResolvConf, ours: s.isGateway, tryTime: tryTime, askTime: askTime}
	return s
}

// Serve begins to answer for a zone, or goes on with what has changed in it.
// Names that were set before are kept.
func (s *Server) Serve(z Zone) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	zone := s.zone(z.ID)
	zone.configure(z)
	s.noteGateways()
	return zone.listen(s)
}

// Stop forgets a zone with its names.
func (s *Server) Stop(id string) {
	s.mu.Lock()
	zone := s.zones[id]
	delete(s.zones, id)
	s.noteGateways()
	s.mu.Unlock()
	if zone != nil {
		zone.close()
	}
}

// SetNames replaces all names of a zone.
func (s *Server) SetNames(id string, names map[string][]netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone(id).setNames(names)
}

// SetName adds or replaces one name of a zone; without addresses it goes.
func (s *Server) SetName(id, name string, addrs []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.zone(id).setName(strings.ToLower(name), addrs)
}

// Close ends all service and returns when no query is being answered.
func (s *Server) Close() {
	s.mu.Lock()
	zones := s.zones
	s.zones, s.closed = map[string]*zone{}, true
	s.mu.Unlock()
	for _, z := range zones {
		z.close()
	}
}

// zone finds a zone or makes one that isn't served yet. s.mu is held.
func (s *Server) zone(id string) *zone {
	z := s.zones[id]
	if z == nil {
		z = newZone()
		s.zones[id] = z
	}
	return z
}

// noteGateways renews the list that isGateway reads. s.mu is held.
func (s *Server) noteGateways() {
	var all []netip.Addr
	for _, z := range s.zones {
		all = append(all, z.config.Gateways...)
	}
	s.gateways.Store(&all)
}

// isGateway tells whether asking addr would be asking ourselves.
func (s *Server) isGateway(addr netip.Addr) bool {
	all := s.gateways.Load()
	return all != nil && slices.Contains(*all, addr)
}
