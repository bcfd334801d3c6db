package settings

import (
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// maxRange bounds a range of ports, as each becomes a rule.
const maxRange = 1024

// publish reads [IP:]HOST:GUEST[/tcp|udp]; HOST and GUEST may be ranges of
// equal length, and IP an IPv6 address in brackets.
func publish(_ *Patch, s string) (any, error) {
	bad := api.Errorf(api.CodeInvalid, "%q does not name ports", s).WithHint("write [IP:]HOST:GUEST[/udp], like 8080:80 or 127.0.0.1:5300:53/udp")
	rest, proto, _ := strings.Cut(s, "/")
	if proto != "" && proto != "tcp" && proto != "udp" {
		return nil, api.Errorf(api.CodeInvalid, "%q: the protocol is tcp or udp", s)
	}
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return nil, bad
	}
	host, guest, ip := rest[:i], rest[i+1:], ""
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip, host = host[:i], host[i+1:]
		addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]"))
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%q: %q is not an address", s, ip)
		}
		ip = addr.String()
	}
	h0, h1, ok1 := portRange(host)
	g0, g1, ok2 := portRange(guest)
	switch {
	case !ok1 || !ok2:
		return nil, bad
	case h1-h0 != g1-g0:
		return nil, api.Errorf(api.CodeInvalid, "%q: the two ranges differ in length", s)
	case h1-h0 >= maxRange:
		return nil, api.Errorf(api.CodeInvalid, "%q: more than %d ports", s, maxRange)
	}
	var out []any
	for n := range h1 - h0 + 1 {
		m := map[string]any{"hostPort": h0 + n, "guestPort": g0 + n}
		if ip != "" {
			m["hostIP"] = ip
		}
		if proto != "" {
			m["protocol"] = proto
		}
		out = append(out, m)
	}
	return out, nil
}

func portRange(s string) (first, last int, ok bool) {
	a, b, ranged := strings.Cut(s, "-")
	first, err := strconv.Atoi(a)
	if err != nil || first < 1 || first > 65535 {
		return 0, 0, false
	}
	last = first
	if ranged {
		if last, err = strconv.Atoi(b); err != nil || last < first || last > 65535 {
			return 0, 0, false
		}
	}
	return first, last, true
}

// mount reads SOURCE:TARGET[:ro|rw], where a SOURCE with a slash (or .) is a
// directory of the host and any other the name of a volume.
func mount(p *Patch, s string) (any, error) {
	parts := strings.Split(s, ":")
	hint := "write VOLUME:TARGET or /DIR:TARGET, with :ro for read-only"
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return nil, api.Errorf(api.CodeInvalid, "%q does not name a volume and a target", s).WithHint("%s", hint)
	}
	if !path.IsAbs(parts[1]) {
		return nil, api.Errorf(api.CodeInvalid, "%q: the target %q is not an absolute path", s, parts[1]).WithHint("%s", hint)
	}
	m := map[string]any{"target": path.Clean(parts[1])}
	if len(parts) == 3 {
		switch parts[2] {
		case "ro":
			m["readOnly"] = true
		case "rw":
		default:
			return nil, api.Errorf(api.CodeInvalid, "%q: %q is not an option of a mount", s, parts[2]).WithHint("%s", hint)
		}
	}
	src := parts[0]
	if src != "." && src != ".." && !strings.Contains(src, "/") {
		m["volume"] = src
		return []any{m}, nil
	}
	dir, err := directory(p, src)
	m["hostPath"] = dir
	return []any{m}, err
}

// directory makes a path of the host absolute.
func directory(p *Patch, s string) (any, error) {
	if !filepath.IsAbs(s) {
		s = filepath.Join(p.Dir, s)
	}
	return filepath.Abs(s)
}

// nic reads NETWORK[:OPTION=VALUE[;...]] or none. Options may be separated
// by commas where the text isn't a list itself.
func nic(_ *Patch, s string) (any, error) {
	if s == "none" {
		return []any{}, nil
	}
	network, options, _ := strings.Cut(s, ":")
	if network == "" {
		return nil, api.Errorf(api.CodeInvalid, "%q names no network", s)
	}
	m := map[string]any{"network": network}
	keys := map[string]string{"ip": "ipv4", "ip4": "ipv4", "ip6": "ipv6", "mac": "mac", "name": "name"}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' || r == ';' }) {
		key, value, ok := strings.Cut(o, "=")
		field := keys[key]
		if !ok || field == "" || value == "" {
			return nil, api.Errorf(api.CodeInvalid, "%q: %q is not an option of a port", s, o).WithHint("write ip=, ip6=, mac= or name=")
		}
		if field == "ipv4" || field == "ipv6" {
			addr, err := netip.ParseAddr(value)
			if err != nil {
				return nil, api.Errorf(api.CodeInvalid, "%q: %q is not an address", s, value)
			}
			if field = "ipv6"; addr.Is4() {
				field = "ipv4"
			}
		}
		m[field] = value
	}
	return []any{m}, nil
}
