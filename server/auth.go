package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/http"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

type callerKind int

const (
	callerNone callerKind = iota
	callerUnix
	callerToken
)

// caller is who sends a request.
type caller struct {
	kind callerKind
	uid  uint32 // of a unix caller
	name string // of a token
}

// root tells whether the caller is root on this host. A token never is: it
// may be used from anywhere.
func (c caller) root() bool { return c.kind == callerUnix && c.uid == 0 }

// needRoot refuses all but root. what says why, like "a mount of a host path".
func needRoot(ctx context.Context, field, what string) error {
	c := callOf(ctx).caller
	if c.root() {
		return nil
	}
	return api.Errorf(api.CodeForbidden, "%s is for root over the unix socket only, and the caller is %s", what, c).WithField(field)
}

// peer is what a connection brings: who is at its other end, or why not.
type peer struct {
	caller caller
	err    error
}

type peerKey struct{}

// identify finds out once per connection who is at its other end.
func (s *Server) identify(ctx context.Context, c net.Conn, access Access) context.Context {
	if !access.Peer {
		return ctx
	}
	var p peer
	p.caller, p.err = s.peerCaller(c)
	return context.WithValue(ctx, peerKey{}, p)
}

// authenticate says who sends r. A stream's ticket is its own credential, so
// that a browser, which can't set headers on a WebSocket, needs no other.
func (s *Server) authenticate(r *http.Request, pattern string, access Access) (caller, error) {
	if access.Peer {
		p, ok := r.Context().Value(peerKey{}).(peer)
		if !ok {
			return caller{}, api.Errorf(api.CodeUnauthorized, "the connection has no peer credentials")
		}
		return p.caller, p.err
	}
	if pattern == streamPattern {
		return caller{kind: callerToken}, nil
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return caller{}, api.Errorf(api.CodeUnauthorized, "the API over TCP needs a bearer token").
			WithHint("make one with 'cleave token create NAME' on the host and send it as 'Authorization: Bearer SECRET'")
	}
	t, err := s.backend.CheckToken(strings.TrimSpace(secret))
	if err != nil {
		return caller{}, err
	}
	return caller{kind: callerToken, name: t.Name}, nil
}

// peerCaller admits root and members of the group, by what the kernel
// recorded when the peer connected (unix(7), SO_PEERCRED and SO_PEERGROUPS):
// nothing that the peer does later changes it, and no pid is looked up.
func (s *Server) peerCaller(c net.Conn) (caller, error) {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return caller{}, api.Errorf(api.CodeUnauthorized, "the connection is no unix socket")
	}
	cred, groups, err := peerCredentials(uc)
	if err != nil {
		return caller{}, api.Errorf(api.CodeUnauthorized, "the peer's credentials can't be read: %w", err)
	}
	who := caller{kind: callerUnix, uid: cred.Uid}
	if cred.Uid == 0 {
		return who, nil
	}
	if g, err := user.LookupGroup(s.group); err == nil {
		gid, err := strconv.ParseUint(g.Gid, 10, 32)
		if err == nil && (cred.Gid == uint32(gid) || slices.Contains(groups, uint32(gid))) {
			return who, nil
		}
	}
	return who, api.Errorf(api.CodeForbidden, "uid %d is neither root nor in the group %q", cred.Uid, s.group).
		WithHint("add the user with 'usermod -aG %s USER' and log in again", s.group)
}

func peerCredentials(c *net.UnixConn) (cred *unix.Ucred, groups []uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		if cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); sockErr == nil && cred.Uid != 0 {
			groups, sockErr = peerGroups(int(fd))
		}
	})
	if err == nil {
		err = sockErr
	}
	return cred, groups, err
}

// maxGroups is NGROUPS_MAX (limits.h).
const maxGroups = 65536

// peerGroups reads the supplementary groups (SO_PEERGROUPS, Linux 4.13).
func peerGroups(fd int) ([]uint32, error) {
	size := uint32(64 * 4)
	for {
		buf := make([]byte, size)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && size > uint32(len(buf)) && size <= maxGroups*4:
			continue // size now says what is needed
		case errno != 0:
			return nil, errno
		}
		groups := make([]uint32, size/4)
		return groups, binary.Read(bytes.NewReader(buf[:size]), binary.NativeEndian, groups)
	}
}
