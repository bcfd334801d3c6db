package nettest

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Raw is a socket for whole frames on an interface.
type Raw struct{ fd int }

// Raw opens one on an interface of the namespace.
func (n *Namespace) Raw(t testing.TB, name string) *Raw {
	t.Helper()
	r := &Raw{}
	err := n.Do(func() error {
		iface, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(r.fd) })
		return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Send sends a frame.
func (r *Raw) Send(t testing.TB, frame []byte) {
	t.Helper()
	if err := unix.Send(r.fd, frame, 0); err != nil {
		t.Fatal(err)
	}
}

// Receives tells whether a frame with mark in it comes within wait.
func (r *Raw) Receives(mark []byte, wait time.Duration) bool {
	deadline := time.Now().Add(wait)
	b := make([]byte, 2048)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		tv := unix.NsecToTimeval(left.Nanoseconds())
		if unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv) != nil {
			return false
		}
		n, _, err := unix.Recvfrom(r.fd, b, 0)
		if err == nil && bytes.Contains(b[:n], mark) {
			return true
		}
	}
}
