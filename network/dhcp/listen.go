package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// listener is a bridge that is being listened on.
type listener struct {
	server  *Server
	network Network
	socket  *os.File
	raw     interface {
		Read(func(fd uintptr) bool) error
		Write(func(fd uintptr) bool) error
	}
	cancel context.CancelFunc
	work   sync.WaitGroup
	rates  rates // of the goroutine alone
}

func (s *Server) listen(n Network) (_ *listener, err error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), "dhcp")
	defer func() {
		if err != nil {
			socket.Close()
		}
	}()
	// Without a protocol nothing comes before the filter is there.
	if err := attachFilter(fd); err != nil {
		return nil, err
	}
	address := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: n.Index}
	if err := unix.Bind(fd, address); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{server: s, network: n, socket: socket, raw: raw, cancel: cancel}
	l.work.Go(func() { l.serve(ctx) })
	return l, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// attachFilter lets datagrams to the server's port pass, whole ones.
func attachFilter(fd int) error {
	program, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4}, // a fragment
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: serverPort, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(program))
	for i, p := range program {
		filter[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
}

func (l *listener) close() {
	l.cancel()
	_ = l.socket.Close()
	l.work.Wait()
}

// serve answers until the socket is closed.
func (l *listener) serve(ctx context.Context) {
	buffer := make([]byte, 1<<16)
	for ctx.Err() == nil {
		n, from, err := l.receive(buffer)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// The bridge is down, or goes: it may come again.
			l.server.log.Debug("dhcp: receive", "network", l.network.ID, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		if packet := l.answer(buffer[:n], from, time.Now()); packet != nil {
			if err := l.send(packet, from); err != nil {
				l.server.log.Debug("dhcp: send", "network", l.network.ID, "error", err)
			}
		}
	}
}

// receive returns an IP packet and the station that it came from.
func (l *listener) receive(b []byte) (n int, from net.HardwareAddr, err error) {
	rerr := l.raw.Read(func(fd uintptr) bool {
		var sa unix.Sockaddr
		n, sa, err = unix.Recvfrom(int(fd), b, 0)
		if link, ok := sa.(*unix.SockaddrLinklayer); ok {
			if link.Pkttype == unix.PACKET_OUTGOING {
				n = 0
			}
			from = append(net.HardwareAddr(nil), link.Addr[:min(int(link.Halen), 6)]...)
		}
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	return n, from, errors.Join(rerr, err)
}

// send sends an IP packet to one station, also when its destination is all
// of them: it concerns nobody else.
func (l *listener) send(packet []byte, to net.HardwareAddr) (err error) {
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: l.network.Index, Halen: 6}
	copy(sa.Addr[:], to)
	werr := l.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), packet, 0, sa)
		return !errors.Is(err, unix.EINTR) // a full queue is no reason to wait
	})
	return errors.Join(werr, err)
}
