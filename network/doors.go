package network

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A packet that one table of the packet filter accepts may still be dropped
// by another. Docker, ufw and others make "drop" the policy of iptables'
// FORWARD or INPUT, for everybody. A door is a rule in such a chain that
// lets through what concerns one of our bridges, to be judged by our own
// tables. Docker documents DOCKER-USER as the place for such rules; where
// there is none, they go to the head of the chain itself.

// doorMark begins the comment of each door, before scope and bridge.
const doorMark = "cleave:"

// ruleComment is NFTNL_UDATA_RULE_COMMENT of libnftnl's udata.h.
const ruleComment = userdata.Type(0)

func (m *Manager) doorComment(bridge string) string {
	return doorMark + m.scope + ":" + bridge
}

// gate is a chain of others that drops what nobody accepts.
type gate struct {
	table *nftables.Table
	chain string // where a door goes
	hook  nftables.ChainHook
}

// iptables tells whether the chain is one of iptables' own (over nftables),
// where we may put rules; those of other programs are theirs.
func isIptables(c *nftables.Chain) bool {
	family := c.Table.Family
	return (family == nftables.TableFamilyIPv4 || family == nftables.TableFamilyIPv6) && c.Table.Name == "filter" &&
		(c.Name == "FORWARD" || c.Name == "INPUT")
}

// droppingChains lists the base chains of others that drop forwarded or
// incoming packets by policy.
func droppingChains(c *nftables.Conn) ([]*nftables.Chain, error) {
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains of nftables: %w", err)
	}
	return slices.DeleteFunc(all, func(ch *nftables.Chain) bool {
		return ch.Hooknum == nil || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop ||
			*ch.Hooknum != *nftables.ChainHookForward && *ch.Hooknum != *nftables.ChainHookInput ||
			ch.Table.Family == nftables.TableFamilyBridge || ch.Table.Family == nftables.TableFamilyNetdev
	}), nil
}

// gates finds the chains of iptables that need doors.
func gates(c *nftables.Conn) ([]gate, error) {
	dropping, err := droppingChains(c)
	if err != nil {
		return nil, err
	}
	var all []gate
	for _, ch := range dropping {
		if !isIptables(ch) {
			continue
		}
		g := gate{table: ch.Table, chain: ch.Name, hook: *ch.Hooknum}
		if ch.Name == "FORWARD" {
			if _, err := c.ListChain(ch.Table, "DOCKER-USER"); err == nil {
				g.chain = "DOCKER-USER"
			}
		}
		all = append(all, g)
	}
	return all, nil
}

// openDoors makes the doors that these bridges need and don't have.
func (m *Manager) openDoors(bridges []string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	all, err := gates(c)
	if err != nil {
		return err
	}
	missing := 0
	for _, g := range all {
		rules, err := c.GetRules(g.table, &nftables.Chain{Name: g.chain, Table: g.table})
		if err != nil {
			return fmt.Errorf("read chain %s of iptables: %w", g.chain, err)
		}
		for _, name := range bridges {
			comment := userdata.AppendString(nil, ruleComment, m.doorComment(name))
			if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return string(r.UserData) == string(comment) }) {
				continue
			}
			keys := []expr.MetaKey{expr.MetaKeyIIFNAME}
			if g.hook == *nftables.ChainHookForward {
				keys = append(keys, expr.MetaKeyOIFNAME)
			}
			for _, key := range keys {
				missing++
				c.InsertRule(&nftables.Rule{
					Table: g.table, Chain: &nftables.Chain{Name: g.chain, Table: g.table},
					Exprs: door(key, name), UserData: comment,
				})
			}
		}
	}
	if missing > 0 {
		if err := c.Flush(); err != nil {
			return fmt.Errorf("let our bridges pass iptables: %w", err)
		}
		m.log.Info("network: rules added to iptables, whose policy is to drop", "rules", missing)
	}
	return m.openLegacyDoors(bridges)
}

// door is what "iptables -i NAME -j ACCEPT" makes (or -o), so that iptables
// can show it.
func door(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: append([]byte(name), 0)},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// doorPause is the least time between two looks at other firewalls, some of
// which change all the time.
const doorPause = time.Second

// doorkeeper makes doors anew when other firewalls change, until ctx ends.
func (m *Manager) doorkeeper(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.doors:
		}
		m.mu.Lock()
		bridges := m.bridgeNames()
		m.mu.Unlock()
		if len(bridges) > 0 {
			if err := m.openDoors(bridges); err != nil {
				m.log.Error("network: pass another firewall", "error", err)
			}
		}
		if !pause(ctx, doorPause) {
			return
		}
	}
}

// pause is false when ctx ends before d is over.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// closeDoors removes the scope's doors of all but these bridges.
func (m *Manager) closeDoors(keep []string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	removed := 0
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := &nftables.Table{Name: "filter", Family: family}
		for _, name := range []string{"INPUT", "FORWARD", "DOCKER-USER"} {
			chain := &nftables.Chain{Name: name, Table: table}
			rules, err := c.GetRules(table, chain)
			if err != nil {
				continue // no such chain
			}
			for _, r := range rules {
				comment, ok := userdata.GetString(r.UserData, ruleComment)
				bridge, ours := strings.CutPrefix(comment, m.doorComment(""))
				if ok && ours && !slices.Contains(keep, bridge) {
					removed++
					if err := c.DelRule(&nftables.Rule{Table: table, Chain: chain, Handle: r.Handle}); err != nil {
						return fmt.Errorf("remove a rule of chain %s: %w", name, err)
					}
				}
			}
		}
	}
	if removed > 0 {
		if err := c.Flush(); err != nil {
			return fmt.Errorf("remove rules from iptables: %w", err)
		}
	}
	return m.closeLegacyDoors(keep)
}
