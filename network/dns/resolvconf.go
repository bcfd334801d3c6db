package dns

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// upstream knows the host's resolvers.
type upstream struct {
	path             string
	ours             func(netip.Addr) bool // addresses that we serve ourselves
	tryTime, askTime time.Duration         // like the constants

	mu      sync.Mutex
	read    time.Time // modification time of what was read
	size    int64
	servers []netip.Addr
}

// mostServers is how many resolvers are asked before giving up; more than
// the three of resolv.conf(5) would outlast the guest's patience.
const mostServers = 3

// list returns the resolvers in their order. The file is read when it isn't
// the one of the last time.
func (u *upstream) list() []netip.Addr {
	u.mu.Lock()
	defer u.mu.Unlock()
	info, err := os.Stat(u.path)
	if err != nil {
		return u.servers // as it was: the file may be in the middle of a replacement
	}
	if !info.ModTime().Equal(u.read) || info.Size() != u.size {
		if content, err := os.ReadFile(u.path); err == nil {
			u.servers = ParseResolvConf(content)
			u.read, u.size = info.ModTime(), info.Size()
		}
	}
	servers := slices.DeleteFunc(slices.Clone(u.servers), u.ours)
	return servers[:min(len(servers), mostServers)]
}

// ParseResolvConf finds the name servers in a resolv.conf(5).
func ParseResolvConf(content []byte) []netip.Addr {
	var servers []netip.Addr
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !slices.Contains(servers, a) {
			servers = append(servers, a)
		}
	}
	return servers
}
