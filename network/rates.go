package network

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/link"
)

// SetRates changes the limits of a live port to p.In and p.Out.
func (m *Manager) SetRates(_ context.Context, p Port) error {
	m.mu.Lock()
	live := m.ports[p.Link]
	m.mu.Unlock()
	if live == nil {
		return api.Errorf(api.CodeNotFound, "port %s isn't on this host", p.Link)
	}
	if p.In < 0 || p.Out < 0 {
		return api.Errorf(api.CodeInvalid, "port %s: a rate can't be negative", p.Link)
	}
	rated := live.Port
	rated.In, rated.Out = p.In, p.Out
	if err := m.limit(live.index, live.Port, rated); err != nil {
		return err
	}
	m.mu.Lock()
	live.In, live.Out = p.In, p.Out
	m.mu.Unlock()
	return nil
}

// limit goes from the rates of one to those of the other.
func (m *Manager) limit(index int, from, to Port) error {
	if from.In != to.In {
		if err := m.rt.Limit(index, uint64(to.In)); err != nil {
			return err
		}
	}
	if from.Out != to.Out {
		return m.limitOut(index, to)
	}
	return nil
}

func (m *Manager) limitOut(index int, p Port) error {
	if p.Out == 0 {
		return m.rt.Undivert(index, p.shaper())
	}
	shaper, err := m.rt.Divert(index, p.shaper(), m.groups.ports)
	if err != nil {
		return err
	}
	return m.rt.Limit(shaper, uint64(p.Out))
}

// Counters reads the counters of those of the links that exist.
func (m *Manager) Counters(links []string) (map[string]Counters, error) {
	indexes := map[string]int{}
	m.mu.Lock()
	for _, name := range links {
		if p := m.ports[name]; p != nil && p.index != 0 {
			indexes[name] = p.index
		}
	}
	m.mu.Unlock()
	all := map[int]link.Stats{}
	if len(indexes) > dumpFrom {
		var err error
		if all, err = m.rt.AllStats(); err != nil {
			return nil, err
		}
	} else {
		for _, i := range indexes {
			s, err := m.rt.Stats(i)
			if errors.Is(err, unix.ENODEV) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all[i] = s
		}
	}
	counters := map[string]Counters{}
	for name, i := range indexes {
		if s, ok := all[i]; ok {
			// What the host receives the guest has sent.
			counters[name] = Counters{
				RxBytes: s.TxBytes, TxBytes: s.RxBytes, RxPackets: s.TxPackets, TxPackets: s.RxPackets, Dropped: s.Dropped,
			}
		}
	}
	return counters, nil
}

// dumpFrom is the number of links from which it is cheaper to read all.
const dumpFrom = 16
