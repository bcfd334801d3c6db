package link

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A token bucket lets this much through at once, so that timers need not
// fire for every packet, and queues this much more before it drops.
const (
	burstTime = 50          // a fraction of a second
	queueTime = 10          // likewise
	leastData = 32 << 10    // bytes, for rates that would give less
	mostData  = 1<<31 - 1   // what fits the kernel's fields
	rootMajor = uint16(0xc) // handle of our queueing disciplines
)

// Limit holds what leaves the host by the link, which is what a guest
// receives, to rate bytes a second. It replaces an earlier limit without a
// pause; 0 lifts it.
func (c *Conn) Limit(index int, rate uint64) error {
	root := netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(rootMajor, 0), Parent: netlink.HANDLE_ROOT}
	if rate == 0 {
		err := c.QdiscDel(&netlink.Tbf{QdiscAttrs: root})
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("lift the limit of link %d: %w", index, err)
		}
		return nil
	}
	burst := max(rate/burstTime, leastData)
	err := c.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: root,
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, uint32(min(burst, mostData))),
		Limit:      uint32(min(rate/queueTime+burst, mostData)),
	})
	if err != nil {
		return fmt.Errorf("limit link %d to %d bytes a second: %w", index, rate, err)
	}
	return nil
}

// Divert sends what comes in by the link, which is what a guest sends,
// through the link called name, a device of kind ifb that it makes, and
// returns its index. A limit on that device then shapes it, where policing
// would drop. Packets go on from there as if they had come in just now.
func (c *Conn) Divert(index int, name string, group uint32) (int, error) {
	ifb, err := c.ifb(name, group)
	if err != nil {
		return 0, err
	}
	if err := c.redirect(index, ifb); err != nil {
		return 0, fmt.Errorf("divert link %d to %s: %w", index, name, err)
	}
	return ifb, nil
}

// redirect sends everything that comes in by one link out by the other.
func (c *Conn) redirect(from, to int) error {
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := c.QdiscAdd(ingress); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add ingress: %w", err)
	}
	// A selector without keys to compare matches everything.
	return c.FilterReplace(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL,
			Handle: 0x80000800, // table 800, first entry: replaces itself
		},
		Actions: []netlink.Action{netlink.NewMirredAction(to)},
	})
}

// Undivert takes back what Divert did; the device called name goes too.
func (c *Conn) Undivert(index int, name string) error {
	err := c.QdiscDel(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove ingress from link %d: %w", index, err)
	}
	return c.Delete(name)
}

// ifb makes the device, or finds it, and sets it up.
func (c *Conn) ifb(name string, group uint32) (int, error) {
	if index, err := c.Index(name); err == nil {
		return index, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group = name, group
	attrs.NumTxQueues, attrs.NumRxQueues = 1, 1
	attrs.Flags = net.FlagUp
	if err := c.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
		return 0, fmt.Errorf("make link %s of kind ifb: %w", name, err)
	}
	return c.Index(name)
}
