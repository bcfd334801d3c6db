package dns

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// udpSize is the largest datagram that is safe from fragmentation
	// (RFC 9715 §3.2 recommends no more than 1400; 1232 fits any IPv6 path).
	udpSize = 1232
	// tryTime is given to each resolver, askTime to all of them.
	tryTime = 2 * time.Second
	askTime = 5 * time.Second
)

// ask puts a guest's question to the host's resolvers, one after the other.
// The answer is theirs; without one it is a server failure.
func (u *upstream) ask(ctx context.Context, q *dns.Msg) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, u.askTime)
	defer cancel()
	query := new(dns.Msg)
	query.Question = q.Question
	query.RecursionDesired, query.CheckingDisabled = true, q.CheckingDisabled
	query.AuthenticatedData = q.AuthenticatedData
	secure := false
	if opt := q.IsEdns0(); opt != nil {
		secure = opt.Do()
	}
	query.SetEdns0(udpSize, secure)

	var last *dns.Msg
	for _, server := range u.list() {
		query.Id = dns.Id()
		r, err := u.exchange(ctx, query, server)
		if err != nil {
			continue
		}
		last = r
		if r.Rcode != dns.RcodeServerFailure && r.Rcode != dns.RcodeRefused {
			break
		}
	}
	if last == nil {
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	last.Id = q.Id
	return last
}

// exchange asks one resolver, again over TCP if its answer was cut short
// (RFC 7766 §5), and checks that the answer is to what was asked.
func (u *upstream) exchange(ctx context.Context, query *dns.Msg, server netip.Addr) (*dns.Msg, error) {
	r, err := u.exchangeOver(ctx, "udp", query, server)
	if err == nil && r.Truncated {
		if whole, err := u.exchangeOver(ctx, "tcp", query, server); err == nil {
			r = whole
		}
	}
	if err != nil {
		return nil, err
	}
	if len(r.Question) != 1 || !sameQuestion(r.Question[0], query.Question[0]) {
		return nil, dns.ErrId
	}
	return r, nil
}

func (u *upstream) exchangeOver(ctx context.Context, network string, query *dns.Msg, server netip.Addr) (*dns.Msg, error) {
	client := dns.Client{Net: network, UDPSize: udpSize, Timeout: u.tryTime}
	c, err := client.DialContext(ctx, net.JoinHostPort(server.String(), "53"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	// The client itself doesn't stop waiting when ctx ends.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	r, _, err := client.ExchangeWithConnContext(ctx, query, c)
	return r, err
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && dns.CanonicalName(a.Name) == dns.CanonicalName(b.Name)
}
