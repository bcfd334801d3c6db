package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// reservation holds a port of the host with sockets that are bound and
// never listen: no program can take the port, and none is asked whether it
// may be had that wouldn't know. The packet filter sends packets elsewhere
// before they would come to these sockets.
type reservation []*os.File

func (r reservation) release() {
	for _, f := range r {
		_ = f.Close()
	}
}

// reservePort binds the port on the forward's host addresses.
func reservePort(f Forward) (reservation, error) {
	var r reservation
	for _, guest := range f.targets() {
		host := f.HostIP
		if !host.IsValid() {
			host = netip.IPv4Unspecified()
			if guest.Is6() {
				host = netip.IPv6Unspecified()
			}
		}
		s, err := bindPort(f.Protocol, netip.AddrPortFrom(host, f.HostPort), false)
		if errors.Is(err, unix.EADDRINUSE) {
			s, err = bindLeftover(f.Protocol, netip.AddrPortFrom(host, f.HostPort))
		}
		if err != nil {
			r.release()
			return nil, explainBind(f, err)
		}
		r = append(r, s)
	}
	return r, nil
}

func explainBind(f Forward, err error) error {
	var taken *takenError
	switch {
	case errors.As(err, &taken):
		return api.Errorf(api.CodeConflict, "publish %s: %w", f, err).WithField("spec.publish").
			WithHint("stop that program or choose another port of the host")
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return api.Errorf(api.CodeInvalid, "publish %s: the host has no address %s", f, f.HostIP).WithField("spec.publish")
	}
	return fmt.Errorf("publish %s: %w", f, err)
}

// takenError says who has a port.
type takenError struct{ by string }

func (e *takenError) Error() string { return e.by }

// bindLeftover binds a port that couldn't be bound because of connections
// that a server which is gone has left behind (in TIME-WAIT, say): they do
// no harm, since theirs go on as they are tracked. Any other user of the
// port is a takenError.
func bindLeftover(protocol string, at netip.AddrPort) (*os.File, error) {
	users, err := portUsers(protocol, at)
	if err != nil {
		return nil, err
	}
	leftover := len(users) > 0 && protocol == "tcp"
	for _, u := range users {
		leftover = leftover && u.state != tcpListen
	}
	if leftover {
		if s, err := bindPort(protocol, at, true); err == nil {
			return s, nil
		}
	}
	for _, u := range users {
		if protocol == "udp" || u.state == tcpListen {
			return nil, &takenError{"it is in use by " + u.program()}
		}
	}
	return nil, &takenError{"it is held by a socket that serves nobody, such as another daemon's published port"}
}

// bindPort binds a socket. Sharing lets it be where connections are left.
func bindPort(protocol string, at netip.AddrPort, share bool) (*os.File, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	var address unix.Sockaddr
	if at.Addr().Is4() {
		address = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	if protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "reservation")
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && share {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, address)
	}
	if err == nil && kind == unix.SOCK_DGRAM {
		// Nothing comes here; if it did, it should cost no memory.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("bind %s: %w", at, err)
	}
	return f, nil
}
