package dns

import (
	"cmp"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketMemory is what may lie in a UDP socket, each way, in bytes of the
// kernel's memory. The packet filter lets each guest send a thousand queries
// at once, of some 800 bytes there; and where a guest's rate is limited, its
// answers wait in a queue of up to a megabyte that counts as the socket's.
// Guests share the socket, and one alone must not fill it.
const socketMemory = 8 << 20

// packets is the UDP socket of a gateway. Nothing that guests do makes its
// reader wait: an answer for which there is no room is lost, as datagrams
// may be. Package net would wait for room, and all other answers with it.
type packets struct {
	raw syscall.RawConn
}

func newPackets(c *net.UDPConn) (packets, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return packets{}, err
	}
	err = raw.Control(func(fd uintptr) {
		// Needs a right that a daemon has and a test may lack; the size
		// that the host gives to everyone does in quiet times.
		for _, option := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
			// The kernel doubles the value for its own needs.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, socketMemory/2)
		}
	})
	return packets{raw}, err
}

// receive waits for a datagram. The socket address is for send.
func (p packets) receive(b []byte) (n int, from unix.Sockaddr, err error) {
	closed := p.raw.Read(func(fd uintptr) bool {
		for err = unix.EINTR; err == unix.EINTR; {
			n, from, err = unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		}
		return err != unix.EAGAIN
	})
	return n, from, cmp.Or(closed, err)
}

// send sends a datagram now or not at all.
func (p packets) send(b []byte, to unix.Sockaddr) {
	_ = p.raw.Control(func(fd uintptr) {
		for err := error(unix.EINTR); err == unix.EINTR; {
			err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, to)
		}
	})
}

// addressOf is the address in a socket address.
func addressOf(s unix.Sockaddr) netip.Addr {
	switch s := s.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(s.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(s.Addr).Unmap()
	}
	return netip.Addr{}
}
