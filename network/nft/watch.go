package nft

import (
	"context"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls lost whenever somebody deletes one of the tables, by flushing
// the whole ruleset say, until ctx ends. It returns nil then.
func (t *Tables) Watch(ctx context.Context, lost func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	for {
		messages, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, unix.ENOBUFS) {
			// Events were lost, ours perhaps among them.
			if present, err := t.Present(); err == nil && !present {
				lost()
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, m := range messages {
			if t.deletes(m) {
				lost()
			}
		}
	}
}

// deletes tells whether m is about the deletion of one of the tables.
func (t *Tables) deletes(m netlink.Message) bool {
	if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE || len(m.Data) < 4 {
		return false
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[4:]) // after struct nfgenmsg
	if err != nil {
		return false
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_TABLE_NAME && string(a.Data) == t.inet.Name+"\x00" {
			return true
		}
	}
	return false
}
