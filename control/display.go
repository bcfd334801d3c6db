package control

import (
	"context"
	"net"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// VNC connects to the screen of a running instance (RFC 6143). The caller
// closes it.
func (c *Controller) VNC(ctx context.Context, project, name string) (net.Conn, error) {
	d, id, err := c.display(ctx, project, name)
	if err != nil {
		return nil, err
	}
	conn, err := d.VNC(ctx, id)
	return conn, c.naming(err)
}

// Screenshot is what the screen of a running instance shows, as PNG.
func (c *Controller) Screenshot(ctx context.Context, project, name string) ([]byte, error) {
	d, id, err := c.display(ctx, project, name)
	if err != nil {
		return nil, err
	}
	picture, err := d.Screenshot(ctx, id)
	return picture, c.naming(err)
}

func (c *Controller) display(ctx context.Context, project, name string) (engine.Display, string, error) {
	in, err := c.Instance(project, name)
	if err != nil {
		return nil, "", err
	}
	w, caps, err := c.usable(ctx, in.Spec.Kind)
	if err != nil {
		return nil, "", err
	}
	d, ok := w.Engine.(engine.Display)
	if !ok || !caps.Display {
		return nil, "", api.Errorf(api.CodeUnsupported, "instance %q is a %s, which has no screen", name, w.Kind()).
			WithHint("`cleave console %s` shows its terminal; %s", name, c.kindsThat(ctx, func(caps engine.Capabilities) bool { return caps.Display }))
	}
	if g := c.live(in.ID); g == nil || c.exit(g) != nil {
		return nil, "", notRunning(in)
	}
	return d, in.ID, nil
}
