package server

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// ListenUnix listens on a unix socket that root and group may open. A socket
// that a dead daemon left is replaced; one that answers is an error.
func ListenUnix(path, group string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "the socket %s can't be made: %w", path, err)
	}
	mode := os.FileMode(0o600)
	if g, lookupErr := user.LookupGroup(group); lookupErr == nil {
		if gid, convErr := strconv.Atoi(g.Gid); convErr == nil {
			mode, err = 0o660, os.Chown(path, -1, gid)
		}
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		_ = l.Close()
		return nil, api.Errorf(api.CodeInternal, "the socket %s can't be opened to the group %q: %w", path, group, err)
	}
	return l, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return api.Errorf(api.CodeInternal, "the socket %s can't be looked at: %w", path, err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return api.Errorf(api.CodeConflict, "%s is in the way: it is no socket", path).WithHint("move it away")
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return api.Errorf(api.CodeBusy, "another daemon answers on %s", path).
			WithHint("stop it, or give this one directories of its own with --data and --run")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return api.Errorf(api.CodeInternal, "whether %s is in use can't be told: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return api.Errorf(api.CodeInternal, "the stale socket %s can't be removed: %w", path, err)
	}
	return nil
}

// ListenTCP listens on host:port, with TLS when given a certificate and its
// key (PEM). Without TLS it refuses any address but loopback: a bearer token
// must not cross a network in the clear.
func ListenTCP(addr, certFile, keyFile string) (net.Listener, error) {
	if (certFile == "") != (keyFile == "") {
		return nil, api.Errorf(api.CodeInvalid, "TLS on %s needs both a certificate and its key", addr)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "%q is no address to listen on: %w", addr, err).WithHint("write HOST:PORT, like 127.0.0.1:8443")
	}
	var cert tls.Certificate
	if certFile != "" {
		if cert, err = tls.LoadX509KeyPair(certFile, keyFile); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "the certificate %s with the key %s can't be used: %w", certFile, keyFile, err)
		}
	} else if !isLoopbackName(host) {
		return nil, api.Errorf(api.CodeInvalid, "listening on %s without TLS is refused: only loopback may be served in the clear", addr).
			WithHint("give a certificate and its key, or listen on 127.0.0.1 or [::1]")
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "can't listen on %s: %w", addr, err)
	}
	if certFile == "" {
		// localhost is whatever /etc/hosts says: look at what we got.
		if a, ok := l.Addr().(*net.TCPAddr); !ok || !a.IP.IsLoopback() {
			_ = l.Close()
			return nil, api.Errorf(api.CodeInvalid, "%s is %s, which is not loopback, and there is no TLS", addr, l.Addr())
		}
		return l, nil
	}
	return tls.NewListener(l, &tls.Config{
		Certificates: []tls.Certificate{cert},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2", "http/1.1"},
	}), nil
}
