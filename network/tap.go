package network

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/link"
)

// OpenTap is Attach for a machine: the port's other end is the descriptor,
// with IFF_NO_PI and IFF_VNET_HDR, that is returned. The link goes with the
// last descriptor of it; Detach and Sweep see to the rest. Whoever has the
// descriptor may choose the header's size and what is left to the other side
// (TUNSETVNETHDRSZ, TUNSETOFFLOAD); nothing is, until then.
func (m *Manager) OpenTap(ctx context.Context, p Port) (*os.File, error) {
	var tap *os.File
	err := m.attach(ctx, p, func(b *bridge) (index int, err error) {
		tap, index, err = m.tap(b, p)
		return index, err
	})
	return tap, err
}

// tap makes the link whose other end is a descriptor.
func (m *Manager) tap(b *bridge, p Port) (*os.File, int, error) {
	t := link.Tap{
		Name: p.Link, MAC: p.hostMAC(), Group: m.groups.ports, Bridge: b.index, MTU: p.MTU, IPv6: m.ipv6,
	}
	if t.MTU == 0 {
		t.MTU = b.mtu
	}
	f, index, err := m.rt.AddTap(t)
	if errors.Is(err, unix.EBUSY) {
		// What an earlier guest of that id left, or its monitor still holds.
		if err := m.rt.Delete(p.Link); err != nil {
			return nil, 0, err
		}
		f, index, err = m.rt.AddTap(t)
	}
	if missing := (*fs.PathError)(nil); errors.As(err, &missing) {
		return nil, 0, api.Errorf(api.CodeUnsupported, "port %s: the kernel has no tap devices: %w", p.Link, err).
			WithHint("load the module tun, or use a kernel with CONFIG_TUN")
	}
	if err != nil {
		return nil, 0, roomless(b, err)
	}
	if err := m.connect(b, p, index); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, index, nil
}
