package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
)

// setting is a kernel parameter by its path below /proc/sys.
type setting struct{ key, value string }

func readSysctl(key string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", key))
	return strings.TrimSpace(string(b)), err
}

func writeSysctl(key, value string) error {
	if old, err := readSysctl(key); err == nil && old == value {
		return nil
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s to %s: %w", key, value, err)
	}
	return nil
}

// Neighbour tables are shared by all network namespaces of a host: two
// entries for each of a thousand guests must fit, or the kernel drops
// packets with "neighbor table overflow". Its defaults are 512 and 1024.
const (
	neighboursSoft = 16384
	neighboursHard = 32768
)

// hostSysctls makes the host a router, and notes what it was before.
func (m *Manager) hostSysctls() error {
	wanted := []setting{{"net/ipv4/ip_forward", "1"}}
	families := []string{"ipv4"}
	if m.ipv6 {
		families = append(families, "ipv6")
		listeners, err := advertisementListeners()
		if err != nil {
			return err
		}
		wanted = append(append(wanted, listeners...), setting{"net/ipv6/conf/all/forwarding", "1"})
	}
	for _, family := range families {
		for _, s := range []struct {
			name  string
			least int
		}{{"gc_thresh3", neighboursHard}, {"gc_thresh2", neighboursSoft}} {
			key := "net/" + family + "/neigh/default/" + s.name
			text, err := readSysctl(key)
			if errors.Is(err, fs.ErrNotExist) {
				continue // only the host's first namespace has it
			}
			if n, err := strconv.Atoi(text); err == nil && n < s.least {
				wanted = append(wanted, setting{key, strconv.Itoa(s.least)})
			}
		}
	}
	return m.ledger.set(m.scope, wanted)
}

// advertisementListeners are links that configure themselves by router
// advertisements. A router doesn't, unless accept_ra is 2
// (Documentation/networking/ip-sysctl.rst): without that the host would
// lose its own default route.
func advertisementListeners() ([]setting, error) {
	if on, err := readSysctl("net/ipv6/conf/all/forwarding"); err != nil || on == "1" {
		return nil, err
	}
	entries, err := os.ReadDir("/proc/sys/net/ipv6/conf")
	if err != nil {
		return nil, fmt.Errorf("list links with IPv6: %w", err)
	}
	var all []setting
	for _, e := range entries {
		key := "net/ipv6/conf/" + e.Name() + "/accept_ra"
		if e.Name() == "all" || e.Name() == "default" || e.Name() == "lo" {
			continue
		}
		if v, err := readSysctl(key); err == nil && v == "1" {
			all = append(all, setting{key, "2"})
		}
	}
	return all, nil
}

// othersRoute tells whether something else on the host forwards packets too:
// it may rely on what we found switched off.
func (m *Manager) othersRoute() bool {
	links, err := m.rt.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return true
	}
	for _, l := range links {
		if l.Type() == "bridge" && l.Attrs().Group != m.groups.bridges {
			return true
		}
	}
	return false
}
