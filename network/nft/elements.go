package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// An Element is one entry of one of the sets and maps. It can be compared.
type Element struct {
	set, key, value string
}

// Network are the elements of a network on a bridge.
func Network(bridge string, mac net.HardwareAddr, gateways []netip.Addr, nat bool) []Element {
	name := ifname(bridge)
	e := []Element{{"bridges", name, ""}, {"pairs", name + name, ""}}
	if nat {
		e = append(e, Element{"nat", name, ""})
	} else {
		e = append(e, Element{"routed", name, ""})
	}
	for _, a := range gateways {
		e = append(e, owner(a, mac))
	}
	return e
}

// Guest are the elements of a guest's port: the addresses that it may send
// from, where neighbours find them.
func Guest(link string, mac net.HardwareAddr, addrs []netip.Addr) []Element {
	var e []Element
	for _, a := range addrs {
		family, addr := "4", string(a.AsSlice())
		if a.Is6() {
			family = "6"
		}
		e = append(e, Element{"addresses" + family, ifname(link) + padded(mac) + addr, ""}, owner(a, mac))
		if a.Is4() {
			// Before it knows its address it has none (RFC 2131 §4.1).
			e = append(e, Element{"addresses4", ifname(link) + padded(mac) + string(unknown[:]), ""})
		}
		if !a.IsLinkLocalUnicast() {
			e = append(e, Element{"self" + family, addr + addr, ""})
		}
	}
	return e
}

// unknown is the address of who doesn't know his own.
var unknown [4]byte

func owner(a netip.Addr, mac net.HardwareAddr) Element {
	if a.Is6() {
		return Element{"macs6", string(a.AsSlice()), string(mac)}
	}
	return Element{"macs4", string(a.AsSlice()), string(mac)}
}

// Forward is the element that sends a port of the host, on one address or on
// all when host is unspecified, to a guest's address of the same family.
func Forward(host netip.Addr, protocol byte, hostPort uint16, guest netip.Addr, guestPort uint16) Element {
	key := padded([]byte{protocol}) + padded(port(hostPort))
	value := string(guest.AsSlice()) + padded(port(guestPort))
	family := "4"
	if guest.Is6() {
		family = "6"
	}
	if !host.IsValid() || host.IsUnspecified() {
		return Element{"any" + family, key, value}
	}
	return Element{"one" + family, string(host.AsSlice()) + key, value}
}

// ifname and padded give the forms that keys have in registers: names in
// sixteen bytes, fields of a concatenation in multiples of four.
func ifname(name string) string {
	return name + string(make([]byte, unix.IFNAMSIZ-len(name)))
}

func padded(b []byte) string {
	return string(b) + string(make([]byte, (4-len(b)%4)%4))
}

// chunk is how many elements go into one netlink message, whose attributes
// can't be longer than 64 KiB.
const chunk = 400

// Apply removes and adds elements in one transaction. What is there already
// may be added and what is gone may be removed.
func (t *Tables) Apply(add, remove []Element) error {
	err := t.apply(add, remove)
	// Before 5.18 a key with another value was EBUSY.
	if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EBUSY) {
		return err
	}
	// Somebody else has been at the tables: write what differs.
	present, err := t.Present()
	if err != nil {
		return err
	}
	if !present {
		if err := t.Load(); err != nil {
			return err
		}
	}
	have, err := t.Elements()
	if err != nil {
		return err
	}
	values := map[[2]string]string{}
	for e := range have {
		values[[2]string{e.set, e.key}] = e.value
	}
	remove = slices.DeleteFunc(slices.Clone(remove), func(e Element) bool { return !have[e] })
	for _, e := range add {
		old := Element{e.set, e.key, values[[2]string{e.set, e.key}]}
		if old != e && have[old] && !slices.Contains(remove, old) {
			remove = append(remove, old)
		}
	}
	return t.apply(add, remove)
}

func (t *Tables) apply(add, remove []Element) error {
	if len(add)+len(remove) == 0 {
		return nil
	}
	err := t.commit(func(c *nftables.Conn) error {
		return errors.Join(
			t.each(remove, c.SetDeleteElements),
			t.each(add, c.SetAddElements),
		)
	})
	if err != nil {
		return fmt.Errorf("change elements of tables %q: %w", t.inet.Name, err)
	}
	return nil
}

// each calls do for the elements of one set after the other, in chunks.
func (t *Tables) each(elements []Element, do func(*nftables.Set, []nftables.SetElement) error) error {
	bySet := map[string][]nftables.SetElement{}
	for _, e := range elements {
		bySet[e.set] = append(bySet[e.set], nftables.SetElement{Key: []byte(e.key), Val: []byte(e.value)})
	}
	for _, s := range t.sets.filled() {
		for part := range slices.Chunk(bySet[s.Name], chunk) {
			existing := *s
			existing.ID = 0 // an id names a set of the same transaction
			if err := do(&existing, part); err != nil {
				return err
			}
		}
	}
	return nil
}

// Elements reads all elements that the tables hold.
func (t *Tables) Elements() (map[Element]bool, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("connect to nftables: %w", err)
	}
	all := map[Element]bool{}
	for _, s := range t.sets.filled() {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("read set %q of table %q: %w", s.Name, s.Table.Name, err)
		}
		for _, e := range elements {
			all[Element{s.Name, string(e.Key), string(e.Val)}] = true
		}
	}
	return all, nil
}

// Reconcile makes the tables hold just the wanted elements and tells how
// many it had to change.
func (t *Tables) Reconcile(want []Element) (int, error) {
	have, err := t.Elements()
	if err != nil {
		return 0, err
	}
	var add, remove []Element
	for _, e := range want {
		if !have[e] {
			add = append(add, e)
		}
		delete(have, e)
	}
	for e := range have {
		remove = append(remove, e)
	}
	return len(add) + len(remove), t.apply(add, remove)
}

// The protocols that can be published.
const (
	TCP = byte(unix.IPPROTO_TCP)
	UDP = byte(unix.IPPROTO_UDP)
)
