package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
)

const (
	ticketLife = 30 * time.Second
	maxTickets = 4096
)

// tickets are the streams that may be opened: each by 256 random bits, once,
// within ticketLife, and by the kind of caller that asked for it.
type tickets struct {
	now func() time.Time

	mu   sync.Mutex
	open map[[sha256.Size]byte]ticket // by hash, so that looking one up tells nothing by its time
}

type ticket struct {
	kind    callerKind
	expires time.Time
	// What it opens: a session, or bytes as they are.
	begin func(ctx context.Context) (session, error)
	raw   func(ctx context.Context) (net.Conn, error)
}

func newTickets() *tickets {
	return &tickets{now: time.Now, open: map[[sha256.Size]byte]ticket{}}
}

// issue makes a ticket for the session that begin opens.
func (t *tickets) issue(kind callerKind, begin func(ctx context.Context) (session, error)) (*api.Ticket, error) {
	return t.add(ticket{kind: kind, begin: begin})
}

// issueRaw makes a ticket for a connection whose bytes are passed on.
func (t *tickets) issueRaw(kind callerKind, raw func(ctx context.Context) (net.Conn, error)) (*api.Ticket, error) {
	return t.add(ticket{kind: kind, raw: raw})
}

func (t *tickets) add(tk ticket) (*api.Ticket, error) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // it never fails
	text := base64.RawURLEncoding.EncodeToString(secret[:])
	now := t.now()
	tk.expires = now.Add(ticketLife)

	t.mu.Lock()
	defer t.mu.Unlock()
	for k, old := range t.open {
		if !old.expires.After(now) {
			delete(t.open, k)
		}
	}
	if len(t.open) >= maxTickets {
		return nil, api.Errorf(api.CodeBusy, "%d tickets are waiting to be used", len(t.open)).WithHint("open the streams, or wait %s", ticketLife)
	}
	t.open[sha256.Sum256([]byte(text))] = tk
	return &api.Ticket{Ticket: text, URL: streamPrefix + text, Expires: tk.expires.UTC()}, nil
}

// use takes a ticket away; whether it fits or not, it is spent.
func (t *tickets) use(text string, kind callerKind) (ticket, error) {
	k := sha256.Sum256([]byte(text))
	t.mu.Lock()
	tk, ok := t.open[k]
	delete(t.open, k)
	t.mu.Unlock()
	if !ok || !tk.expires.After(t.now()) || tk.kind != kind {
		return ticket{}, api.Errorf(api.CodeNotFound, "the ticket is unknown, used or expired").
			WithHint("ask for another one; it works once, within %s", ticketLife)
	}
	return tk, nil
}
