package server

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// checkOrigin refuses what a browser was made to send by a page of someone
// else. The unix socket is out of a browser's reach.
//
//   - A cross-site request says so in Sec-Fetch-Site or Origin (Fetch §3.2).
//   - A rebound name (a page's own name that now resolves to 127.0.0.1) shows
//     in Host: without TLS we only listen on loopback, where nobody needs
//     another name; with TLS the certificate doesn't fit that name.
func checkOrigin(r *http.Request, access Access) error {
	if access.Peer {
		return nil
	}
	if r.TLS == nil && !isLoopbackName(r.Host) {
		return api.Errorf(api.CodeForbidden, "the request is for host %q, which is not a name of the loopback interface", r.Host).
			WithHint("use localhost or 127.0.0.1")
	}
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "", "none", "same-origin":
	default:
		return api.Errorf(api.CodeForbidden, "a %s request of a browser is refused", site)
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || !strings.EqualFold(u.Host, r.Host) {
			return api.Errorf(api.CodeForbidden, "a request of a page from %q is refused", origin)
		}
	}
	return nil
}

func isLoopbackName(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}
