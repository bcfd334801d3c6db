package nft

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// TableName is the name of both tables of a scope.
func TableName(scope string) string {
	if scope == "" {
		return "cleave"
	}
	return "cleave-" + scope
}

// Tables are the two tables of one scope.
type Tables struct {
	inet, bridge *nftables.Table
	group        uint32
	sets         *sets
	byName       map[string]*nftables.Set

	mu   sync.Mutex // serializes transactions and guards what follows
	conn *nftables.Conn
	sock *netlink.Conn
}

// answerTime bounds the wait for the kernel's answers, of which it gives none
// to the rest of a transaction that it didn't begin, for lack of memory say.
// Carrying one out is part of it: the first may load modules, and each waits
// for all processors, which took a host under load more than ten seconds.
const answerTime = 2 * time.Minute

// Open connects to the packet filter of the current network namespace. group
// is the link group of the scope's ports. Nothing is made yet.
func Open(scope string, group uint32) (*Tables, error) {
	t := &Tables{
		inet:   &nftables.Table{Name: TableName(scope), Family: nftables.TableFamilyINet},
		bridge: &nftables.Table{Name: TableName(scope), Family: nftables.TableFamilyBridge},
		group:  group,
		byName: map[string]*nftables.Set{},
	}
	t.sets = newSets(t.inet, t.bridge)
	for _, s := range t.sets.filled() {
		t.byName[s.Name] = s
	}
	return t, t.dial()
}

func (t *Tables) dial() error {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		t.sock = c
		// A transaction of some thousand elements is sent in one message and
		// acknowledged part by part.
		return errors.Join(c.SetWriteBuffer(8<<20), c.SetReadBuffer(8<<20))
	}))
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	t.conn = conn
	return nil
}

// Close ends the connection and leaves the tables as they are.
func (t *Tables) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn.CloseLasting()
}

// commit runs one transaction: all that build asks for, or nothing.
func (t *Tables) commit(build func(c *nftables.Conn) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := build(t.conn)
	if err == nil {
		err = t.sock.SetDeadline(time.Now().Add(answerTime))
	}
	if err == nil {
		err = t.conn.Flush()
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) { // once for each part
		first, _, _ := strings.Cut(err.Error(), "\n")
		err = fmt.Errorf("%s: the kernel has not answered within %s", first, answerTime)
	}
	// What was queued or is still to be answered goes with the connection.
	_ = t.conn.CloseLasting()
	return errors.Join(err, t.dial())
}

// Load makes both tables, or gives those of an earlier daemon today's rules
// in one transaction, under which no packet goes unfiltered. Elements are
// kept where the schema is the same.
func (t *Tables) Load() error {
	current, present, err := t.inspect()
	if err != nil {
		return err
	}
	err = t.commit(func(c *nftables.Conn) error {
		if present && !current {
			for _, table := range []*nftables.Table{t.inet, t.bridge} {
				c.AddTable(table) // so that deleting it can't fail
				c.DelTable(table)
			}
		}
		c.AddTable(t.inet)
		c.AddTable(t.bridge)
		if !current {
			for _, s := range append(t.sets.filled(), t.sets.meters()...) {
				if err := c.AddSet(s, nil); err != nil {
					return err
				}
			}
		}
		c.AddChain(&nftables.Chain{Name: schema, Table: t.inet})
		c.AddChain(&nftables.Chain{Name: schema, Table: t.bridge})
		addChains(c, t.inet, inetChains(t.sets))
		addChains(c, t.bridge, bridgeChains(t.sets, t.group))
		return nil
	})
	if err != nil {
		return fmt.Errorf("write tables %q: %w", t.inet.Name, err)
	}
	return nil
}

func addChains(c *nftables.Conn, table *nftables.Table, chains []chain) {
	policy := nftables.ChainPolicyAccept
	for _, ch := range chains {
		nc := &nftables.Chain{Name: ch.name, Table: table}
		if ch.hook != nil {
			nc.Type, nc.Hooknum, nc.Policy = ch.kind, ch.hook, &policy
			nc.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(ch.priority))
		}
		c.AddChain(nc)
		c.FlushChain(nc)
	}
	for _, ch := range chains {
		for _, r := range ch.rules {
			var exprs []expr.Any
			for _, s := range r {
				exprs = append(exprs, s...)
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: ch.name, Table: table}, Exprs: exprs})
		}
	}
}

// Present tells whether both tables are there, in today's schema.
func (t *Tables) Present() (bool, error) {
	current, _, err := t.inspect()
	return current, err
}

// inspect tells whether there is any table of ours, and whether there are
// both with the chain that today's schema marks them with.
func (t *Tables) inspect() (current, present bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, false, fmt.Errorf("connect to nftables: %w", err)
	}
	marked := 0
	for _, table := range []*nftables.Table{t.inet, t.bridge} {
		tables, err := c.ListTablesOfFamily(table.Family)
		if err != nil {
			return false, false, fmt.Errorf("list nftables: %w", err)
		}
		if !slices.ContainsFunc(tables, func(other *nftables.Table) bool { return other.Name == table.Name }) {
			continue
		}
		present = true
		chains, err := c.ListChainsOfTableFamily(table.Family)
		if err != nil {
			return false, false, fmt.Errorf("list chains of nftables: %w", err)
		}
		if slices.ContainsFunc(chains, func(ch *nftables.Chain) bool { return ch.Name == schema && ch.Table.Name == table.Name }) {
			marked++
		}
	}
	return marked == 2, present, nil
}

// Delete removes both tables; it is no error when they are gone.
func (t *Tables) Delete() error {
	err := t.commit(func(c *nftables.Conn) error {
		for _, table := range []*nftables.Table{t.inet, t.bridge} {
			c.AddTable(table)
			c.DelTable(table)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete tables %q: %w", t.inet.Name, err)
	}
	return nil
}
