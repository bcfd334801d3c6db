package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	// idleTime is how long a TCP connection may say nothing (RFC 7766 §6.2.3
	// leaves it to the server, in the order of seconds).
	idleTime = 5 * time.Second
	// mostQueries is how many queries one TCP connection may carry.
	mostQueries = 100
)

// listeners are the open sockets of a zone. Guarded by Server.mu until the
// zone is out of the server's hands.
type listeners struct {
	gateways []netip.Addr
	cancel   context.CancelFunc
	sockets  []interface{ Close() error }
	work     *sync.WaitGroup
}

// listen opens the sockets of the zone's gateways, unless they are open.
func (z *zone) listen(s *Server) error {
	gateways := z.config.Gateways
	if z.listeners.cancel != nil && slices.Equal(z.listeners.gateways, gateways) {
		return nil
	}
	z.close()
	if s.closed {
		return net.ErrClosed
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := listeners{gateways: slices.Clone(gateways), cancel: cancel, work: new(sync.WaitGroup)}
	z.listeners = l
	for _, g := range gateways {
		address := netip.AddrPortFrom(g, 53).String()
		h := &handler{server: s, zone: z, ctx: ctx, work: l.work}
		if err := h.serveOn(address); err != nil {
			z.close()
			return fmt.Errorf("serve names on %s: %w", address, err)
		}
	}
	return nil
}

// serveOn opens the sockets of one gateway and starts their readers.
func (h *handler) serveOn(address string) error {
	config := net.ListenConfig{Control: beforeBind}
	datagrams, err := config.ListenPacket(h.ctx, "udp", address)
	if err != nil {
		return err
	}
	l := &h.zone.listeners
	l.sockets = append(l.sockets, datagrams)
	p, err := newPackets(datagrams.(*net.UDPConn))
	if err != nil {
		return err
	}
	streams, err := config.Listen(h.ctx, "tcp", address)
	if err != nil {
		return err
	}
	l.sockets = append(l.sockets, streams)
	h.work.Go(func() { h.servePackets(p) })
	h.work.Go(func() { h.serveStreams(streams) })
	return nil
}

func (z *zone) close() {
	l := z.listeners
	z.listeners = listeners{}
	if l.cancel == nil {
		return
	}
	l.cancel()
	for _, c := range l.sockets {
		_ = c.Close()
	}
	l.work.Wait()
}

// beforeBind lets a socket have an address that comes later, and an address
// of its own beside a server that has them all.
func beforeBind(network, _ string, c syscall.RawConn) error {
	var err error
	control := func(fd uintptr) {
		level, option := unix.IPPROTO_IP, unix.IP_FREEBIND
		if network == "udp6" || network == "tcp6" {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_FREEBIND
		}
		err = errors.Join(
			unix.SetsockoptInt(int(fd), level, option, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		)
	}
	return errors.Join(c.Control(control), err)
}

// handler serves one zone until ctx ends.
type handler struct {
	server *Server
	zone   *zone
	ctx    context.Context
	work   *sync.WaitGroup
}

func (h *handler) servePackets(p packets) {
	buffer := make([]byte, dns.MaxMsgSize)
	for {
		n, from, err := p.receive(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			h.server.log.Debug("dns: receive", "error", err)
			continue // an ICMP error that came back for an earlier answer
		}
		source := addressOf(from)
		q, r := h.begin(buffer[:n], source)
		switch {
		case r != nil:
			reply(p, from, q, r)
		case q != nil && h.server.limits.forwards.enter(source):
			h.work.Go(func() {
				defer h.server.limits.forwards.leave(source)
				reply(p, from, q, h.server.upstream.ask(h.ctx, q))
			})
		}
	}
}

// reply sends r in a datagram no larger than the asker takes.
func reply(p packets, to unix.Sockaddr, q, r *dns.Msg) {
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(size, min(int(opt.UDPSize()), udpSize))
	}
	if b, err := finish(q, r, size); err == nil {
		p.send(b, to)
	}
}

func (h *handler) serveStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			h.server.log.Warn("dns: accept", "error", err)
			// Out of descriptors: those in use come back within idleTime.
			select {
			case <-h.ctx.Done():
				return
			case <-time.After(time.Second):
			}
			continue
		}
		source := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !h.server.limits.conns.enter(source) {
			_ = c.Close()
			continue
		}
		h.work.Go(func() {
			defer h.server.limits.conns.leave(source)
			h.serveStream(c, source)
		})
	}
}

func (h *handler) serveStream(c net.Conn, source netip.Addr) {
	defer func() { _ = c.Close() }()
	stop := context.AfterFunc(h.ctx, func() { _ = c.Close() })
	defer stop()
	stream := dns.Conn{Conn: c}
	for range mostQueries {
		if c.SetDeadline(time.Now().Add(idleTime)) != nil {
			return
		}
		b, err := stream.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		q, r := h.begin(b, source)
		if q == nil && r == nil {
			return
		}
		if r == nil {
			r = h.server.upstream.ask(h.ctx, q)
		}
		answer, err := finish(q, r, dns.MaxMsgSize)
		if err != nil || c.SetDeadline(time.Now().Add(idleTime)) != nil {
			return
		}
		if _, err := stream.Write(answer); err != nil {
			return
		}
	}
}

// begin reads a message. With neither query nor reply it is to be ignored;
// without a reply the query is for the host's resolvers.
func (h *handler) begin(b []byte, source netip.Addr) (q, r *dns.Msg) {
	q = new(dns.Msg)
	if err := q.Unpack(b); err != nil {
		if len(b) < 12 || q.Response { // no header to answer to
			return nil, nil
		}
		return q, failure(q, dns.RcodeFormatError)
	}
	switch {
	case q.Response:
		return nil, nil
	case q.Opcode != dns.OpcodeQuery:
		return q, failure(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return q, failure(q, dns.RcodeFormatError)
	}
	opt := q.IsEdns0()
	switch t := q.Question[0].Qtype; {
	case opt != nil && opt.Version() != 0: // RFC 6891 §6.1.3
		return q, failure(q, dns.RcodeBadVers)
	case q.Question[0].Qclass != dns.ClassINET, t == dns.TypeAXFR, t == dns.TypeIXFR:
		return q, failure(q, dns.RcodeRefused)
	}
	if r, ok := h.zone.answer(q); ok {
		return q, r
	}
	if !h.zone.serves(source.Unmap()) {
		return q, failure(q, dns.RcodeRefused)
	}
	return q, nil
}

// failure is a reply that says no more than why there is none.
func failure(q *dns.Msg, rcode int) *dns.Msg {
	r := new(dns.Msg)
	r.Id, r.Response, r.Opcode, r.Rcode = q.Id, true, q.Opcode, rcode
	r.RecursionDesired, r.RecursionAvailable = q.RecursionDesired, true
	if len(q.Question) == 1 {
		r.Question = q.Question
	}
	return r
}

// finish packs a reply into at most size bytes, with EDNS exactly if the
// query had it (RFC 6891 §6.1.1).
func finish(q, r *dns.Msg, size int) ([]byte, error) {
	r.Extra = slices.DeleteFunc(r.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	if opt := q.IsEdns0(); opt != nil {
		r.SetEdns0(udpSize, opt.Do())
	} else if r.Rcode > 0xf {
		r.Rcode = dns.RcodeServerFailure // an extended code needs EDNS
	}
	r.Compress = true
	r.Truncate(size)
	return r.Pack()
}
