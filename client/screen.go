package client

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/cleave-project/cleave/api"
	"github.com/coder/websocket"
)

// maxPicture bounds a screenshot.
const maxPicture = 64 << 20

// Screenshot returns what a machine's screen shows, as PNG.
func (c *Client) Screenshot(ctx context.Context, n string) ([]byte, error) {
	return c.picture(ctx, get(name("instances", n)+"/screenshot"))
}

// LastScreen returns the picture that was kept when a machine's firmware found
// nothing to boot, as PNG.
func (c *Client) LastScreen(ctx context.Context, n string) ([]byte, error) {
	r := get(name("instances", n) + "/screenshot")
	r.query = url.Values{"last": {"true"}}
	return c.picture(ctx, r)
}

func (c *Client) picture(ctx context.Context, r request) ([]byte, error) {
	resp, err := c.open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, maxPicture))
}

// VNC connects to a machine's screen: RFC 6143 on a stream of bytes. ctx
// bounds the connection's life. The caller closes it.
func (c *Client) VNC(ctx context.Context, n string) (net.Conn, error) {
	t, err := do[api.Ticket](ctx, c, request{method: http.MethodPost, path: name("instances", n) + "/vnc"})
	if err != nil {
		return nil, err
	}
	conn, err := c.stream(ctx, t)
	if err != nil {
		return nil, err
	}
	return websocket.NetConn(ctx, conn, websocket.MessageBinary), nil
}
