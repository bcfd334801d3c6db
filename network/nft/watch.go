package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls changed until ctx ends, and returns nil then: with true when
// somebody has deleted one of the tables, by flushing the whole ruleset say,
// with false when chains were made or changed, or rules deleted, in tables of
// others.
func (t *Tables) Watch(ctx context.Context, changed func(lost bool)) error {
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
			// Events were lost, those that matter perhaps among them.
			if present, err := t.Present(); err == nil {
				changed(!present)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("watch nftables: %w", err)
		}
		var lost, others bool
		for _, m := range messages {
			switch table := tableOf(m); m.Header.Type & 0xff {
			case unix.NFT_MSG_DELTABLE:
				lost = lost || table == t.inet.Name
			case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELRULE:
				others = others || table != t.inet.Name
			}
		}
		if lost || others {
			changed(lost)
		}
	}
}

// tableOf is the name of the table that an event is about.
func tableOf(m netlink.Message) string {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
		return ""
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[4:]) // after struct nfgenmsg
	if err != nil {
		return ""
	}
	for _, a := range attrs {
		if a.Type == unix.NFTA_TABLE_NAME { // the first attribute of every object
			return strings.TrimRight(string(a.Data), "\x00")
		}
	}
	return ""
}
