package link

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Stats are the counters of a link, as the host sees them.
type Stats struct {
	RxPackets, TxPackets, RxBytes, TxBytes uint64
	Dropped                                uint64
}

// Of linux/if_link.h: struct if_stats_msg, IFLA_STATS_LINK_64, and the
// position of fields in struct rtnl_link_stats64.
const (
	statsMsgLen   = 12
	statsLink64   = 1
	statsRxPacket = 0
	statsTxPacket = 1
	statsRxBytes  = 2
	statsTxBytes  = 3
	statsRxDrop   = 6
	statsTxDrop   = 7
	statsFields   = 8
)

type statsMsg struct{ index uint32 }

func (m statsMsg) Len() int { return statsMsgLen }

func (m statsMsg) Serialize() []byte {
	b := make([]byte, statsMsgLen)
	binary.NativeEndian.PutUint32(b[4:], m.index)
	binary.NativeEndian.PutUint32(b[8:], 1<<(statsLink64-1))
	return b
}

// Stats reads the counters of one link, by index.
func (c *Conn) Stats(index int) (Stats, error) {
	r := c.request(unix.RTM_GETSTATS, 0)
	r.Flags &^= unix.NLM_F_ACK
	r.AddData(statsMsg{uint32(index)})
	msgs, err := r.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWSTATS)
	if err != nil {
		return Stats{}, fmt.Errorf("read counters of link %d: %w", index, err)
	}
	for _, m := range msgs {
		if i, s, ok := parseStats(m); ok && i == index {
			return s, nil
		}
	}
	return Stats{}, fmt.Errorf("read counters of link %d: no answer", index)
}

// AllStats reads the counters of all links, by index.
func (c *Conn) AllStats() (map[int]Stats, error) {
	r := c.request(unix.RTM_GETSTATS, unix.NLM_F_DUMP)
	r.AddData(statsMsg{})
	all := map[int]Stats{}
	err := r.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWSTATS, func(m []byte) bool {
		if i, s, ok := parseStats(m); ok {
			all[i] = s
		}
		return true
	})
	// Links came or went meanwhile; the counters of the others are right.
	if err != nil && !errors.Is(err, nl.ErrDumpInterrupted) {
		return nil, fmt.Errorf("read counters of all links: %w", err)
	}
	return all, nil
}

func parseStats(m []byte) (int, Stats, bool) {
	if len(m) < statsMsgLen {
		return 0, Stats{}, false
	}
	attrs, err := nl.ParseRouteAttr(m[statsMsgLen:])
	if err != nil {
		return 0, Stats{}, false
	}
	for _, a := range attrs {
		if a.Attr.Type != statsLink64 || len(a.Value) < statsFields*8 {
			continue
		}
		n := func(i int) uint64 { return binary.NativeEndian.Uint64(a.Value[i*8:]) }
		return int(binary.NativeEndian.Uint32(m[4:])), Stats{
			RxPackets: n(statsRxPacket), TxPackets: n(statsTxPacket),
			RxBytes: n(statsRxBytes), TxBytes: n(statsTxBytes),
			Dropped: n(statsRxDrop) + n(statsTxDrop),
		}, true
	}
	return 0, Stats{}, false
}
