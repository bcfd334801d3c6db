package probe

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var networks = []check{
	{"TCP on loopback", func(string) (string, error) { return echo("tcp", "127.0.0.1:0") }},
	{"TCP on IPv6 loopback", func(string) (string, error) { return echo("tcp", "[::1]:0") }},
	{"a unix socket", func(dir string) (string, error) { return echo("unix", dir+"/s") }},
	{"UDP on loopback", udp},
	{"connecting where nobody listens", func(string) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		addr := l.Addr().String()
		l.Close()
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return fails(err)
	}},
	{"a port that is taken", func(string) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		defer l.Close()
		m, err := net.Listen("tcp", l.Addr().String())
		if err == nil {
			m.Close()
		}
		return fails(err)
	}},
	{"a low port", func(string) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.9:1")
		if err == nil {
			l.Close()
		}
		return fails(err)
	}},
	{"a raw socket", func(string) (string, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err == nil {
			unix.Close(fd)
		}
		return fails(err)
	}},
	{"descriptors pass through a socket", passed},
	{"a peer's process is known", peer},
	{"interfaces can be listed", func(string) (string, error) {
		ifs, err := net.Interfaces()
		if err != nil {
			return "", err
		}
		for _, i := range ifs {
			if i.Name == "lo" && i.Flags&net.FlagUp != 0 {
				return "lo is up", nil
			}
		}
		return "no lo", nil
	}},
}

func echo(network, address string) (string, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return "", err
	}
	defer l.Close()
	go func() { // ends with the connection, or the listener
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		c.Close()
	}()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	text := strings.Repeat("echo", 1<<14)
	go func() { // ends with the connection
		_, _ = io.WriteString(c, text)
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return "", err
	}
	return is(string(got) == text)
}

func udp(string) (string, error) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	c, err := net.Dial("udp", l.LocalAddr().String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, "datagram"); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, _, err := l.ReadFrom(b)
	return string(b[:n]), err
}

func passed(string) (string, error) {
	s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(s[0])
	defer unix.Close(s[1])
	p, err := pipe()
	if err != nil {
		return "", err
	}
	defer p.close()
	if err := unix.Sendmsg(s[0], []byte("x"), unix.UnixRights(p[1]), nil, 0); err != nil {
		return "", err
	}
	oob := make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(s[1], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return "", err
	}
	ms, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(ms) != 1 {
		return "", errors.Join(errors.New("no control message"), err)
	}
	fds, err := unix.ParseUnixRights(&ms[0])
	if err != nil || len(fds) != 1 {
		return "", errors.Join(errors.New("no descriptor"), err)
	}
	defer unix.Close(fds[0])
	if _, err := unix.Write(fds[0], []byte("through")); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err = unix.Read(p[0], b)
	return string(b[:max(n, 0)]), err
}

func peer(string) (string, error) {
	s, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(s[0])
	defer unix.Close(s[1])
	u, err := unix.GetsockoptUcred(s[0], unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("me: %v, user %d", int(u.Pid) == os.Getpid(), u.Uid), nil
}
