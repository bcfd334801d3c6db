package network

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// tcpListen is TCP_LISTEN of net/tcp_states.h.
const tcpListen = 10

// portUser is a socket that is bound to a port.
type portUser struct {
	address netip.AddrPort
	state   int
	inode   string
}

// portUsers finds the sockets that stand in the way of binding at. This is
// slow on a host with many connections and only asked for an error.
func portUsers(protocol string, at netip.AddrPort) ([]portUser, error) {
	var found []portUser
	for _, suffix := range []string{"", "6"} {
		f, err := os.Open("/proc/thread-self/net/" + protocol + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			u, ok := parsePortUser(lines.Text())
			if ok && u.address.Port() == at.Port() && meets(u.address.Addr(), at.Addr()) {
				found = append(found, u)
			}
		}
		_ = f.Close()
		if err := lines.Err(); err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
	}
	return found, nil
}

// meets tells whether sockets bound to both addresses would get the same
// packets. A socket on :: gets those for IPv4 too, unless it declined.
func meets(a, b netip.Addr) bool {
	a, b = a.Unmap(), b.Unmap()
	return a == b || a.IsUnspecified() && (a.Is6() || b.Is4()) || b.IsUnspecified() && a.Is4() == b.Is4()
}

// parsePortUser reads a line of /proc/net/tcp, udp, tcp6 or udp6
// (Documentation/networking/proc_net_tcp.rst): number, local address, remote
// address, state, ..., with the inode as the tenth field.
func parsePortUser(line string) (portUser, bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 {
		return portUser{}, false
	}
	host, portText, ok := strings.Cut(fields[1], ":")
	raw, err1 := hex.DecodeString(host)
	port, err2 := strconv.ParseUint(portText, 16, 16)
	state, err3 := strconv.ParseInt(fields[3], 16, 32)
	if !ok || err1 != nil || err2 != nil || err3 != nil || len(raw)%4 != 0 {
		return portUser{}, false
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word) // printed as numbers of a little-endian machine
	}
	addr, ok := netip.AddrFromSlice(raw)
	return portUser{netip.AddrPortFrom(addr, uint16(port)), int(state), fields[9]}, ok
}

// program names the process that has the socket.
func (u portUser) program() string {
	at := "a socket on " + u.address.String()
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return at
	}
	for _, l := range links {
		if target, err := os.Readlink(l); err != nil || target != "socket:["+u.inode+"]" {
			continue
		}
		dir := filepath.Dir(filepath.Dir(l))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s) on %s", strings.TrimSpace(string(comm)), filepath.Base(dir), u.address)
	}
	return at
}
