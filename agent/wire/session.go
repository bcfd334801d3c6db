package wire

import (
	"bufio"
	"io"
	"log"
	"net"
	"time"

	"github.com/hashicorp/yamux"
)

// Window is how much of a stream may be on its way or unread.
const Window = 1 << 20

// config is for both sides. Nothing in it may wake an idle session, nor end
// one whose guest is paused: what bounds a wait is the caller's context, and
// closing the session, which ends every call on it.
func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 365 * 24 * time.Hour
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 0 // stdin is closed long before a command ends
	c.MaxStreamWindowSize = Window
	c.LogOutput, c.Logger = nil, log.New(io.Discard, "", 0)
	return c
}

// ClientSession begins the host's side of a session after Greet.
func ClientSession(r *bufio.Reader, conn net.Conn) (*yamux.Session, error) {
	return yamux.Client(&guarded{transport: transport{r: r, Conn: conn}}, config())
}

// ServerSession begins the guest's side of a session after Answer.
func ServerSession(r *bufio.Reader, conn net.Conn) (*yamux.Session, error) {
	return yamux.Server(&transport{r: r, Conn: conn}, config())
}

// transport is a connection whose first bytes may be in r already.
type transport struct {
	r *bufio.Reader
	net.Conn
}

func (t *transport) Read(p []byte) (int, error) { return t.r.Read(p) }
