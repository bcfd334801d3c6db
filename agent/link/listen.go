package link

import (
	"errors"
	"io"
	"net"
)

// maxWaiting is how many connections may wait for Accept.
const maxWaiting = 128

// Listener is the guest's side of a channel. It is a net.Listener.
type Listener struct {
	e        *endpoint
	accepted chan *conn
	refused  uint64 // session that was answered last with a reset; guarded by endpoint.mu
}

// Listen begins to listen on ch, which it owns from then on. What it accepts
// are the connections of the host's session, of the next one when that has
// ended, and so on until the channel ends.
func Listen(ch io.ReadWriteCloser) *Listener {
	l := &Listener{e: newEndpoint(ch, fromGuest), accepted: make(chan *conn, maxWaiting)}
	if h, ok := ch.(HatchReader); ok {
		l.e.hatch = h.Hatch()
	}
	l.e.send(frame{kind: reset})
	l.e.start(l.take, l.damaged)
	return l
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.e.done:
		if errors.Is(l.e.err, net.ErrClosed) {
			return nil, net.ErrClosed
		}
		return nil, ended(l.e.err)
	}
}

// Close ends the channel and all connections.
func (l *Listener) Close() error {
	l.e.fail(net.ErrClosed)
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return Addr{} }

// take takes a frame of the host's; with mu held.
func (l *Listener) take(f frame) {
	known := f.session == l.e.session && f.session != 0
	switch {
	case f.kind == open && len(f.payload) >= 2:
		if !known {
			l.e.end(errAnew)
			l.e.session, l.e.sent, l.e.received = f.session, 0, 0
			l.e.pace.tell, l.e.pace.told = len(f.payload) > 2 && f.payload[2] == askCredit, true
		}
		// The host asks again until it is answered; after that it is silent,
		// so that this is never in the middle of data. What the host before
		// left unread may end in half a frame.
		l.e.out = append(l.e.out, delimiter)
		answer := []byte{min(f.payload[0], newest)}
		if l.e.hatch != nil && len(f.payload) > 3 && f.payload[3] == takesHatch {
			answer = append(answer, takesHatch)
		}
		l.e.send(frame{kind: accept, session: f.session, payload: answer})
	case known && f.kind == connect:
		l.connect(f)
	case known && f.kind > connect:
		l.e.take(f)
	case f.kind >= connect && f.session != l.refused:
		l.refused = f.session
		l.e.send(frame{kind: reset, session: f.session})
	}
}

// damaged ends the session, and tells a host that may send no more to be
// answered; with mu held.
func (l *Listener) damaged(err error) {
	if session := l.e.session; session != 0 && !errors.Is(err, ErrHungUp) {
		l.refused = session
		l.e.send(frame{kind: reset, session: session})
	}
	l.e.end(err)
}

// connect begins a connection, or ends it at once if nobody accepts.
func (l *Listener) connect(f frame) {
	if l.e.take(f); l.e.session == 0 {
		return
	}
	c := l.e.add(f.conn)
	select {
	case l.accepted <- c:
	default:
		c.close()
	}
}
