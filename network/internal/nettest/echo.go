package nettest

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// patience is how long a packet that should come is waited for, and how long
// one that shouldn't.
const patience = 2 * time.Second

// Answer starts servers in the namespace, over TCP and UDP on all addresses
// of the port, that answer everything with name and the asker's address.
func (n *Namespace) Answer(t testing.TB, port int, name string) {
	t.Helper()
	err := n.Do(func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		p, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = p.Close() })
		go answerStreams(l, name)
		go answerPackets(p, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func answerStreams(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_, _ = io.WriteString(c, name+" "+host)
		_ = c.Close()
	}
}

func answerPackets(p net.PacketConn, name string) {
	b := make([]byte, 1500)
	for {
		_, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		host, _, _ := net.SplitHostPort(from.String())
		_, _ = p.WriteTo([]byte(name+" "+host), from)
	}
}

// Ask connects from the namespace and returns what is answered.
func (n *Namespace) Ask(network, address string) (answer string, err error) {
	err = n.Do(func() error {
		answer, err = Ask(network, address)
		return err
	})
	return answer, err
}

// Ask connects from where it is called and returns what is answered.
func Ask(network, address string) (string, error) {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if strings.HasPrefix(network, "udp") {
		return AskOn(c)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	return string(b), err
}

// AskOn sends one datagram and returns the one that comes back.
func AskOn(c net.Conn) (string, error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "?"); err != nil {
		return "", err
	}
	b := make([]byte, 1500)
	k, err := c.Read(b)
	return string(b[:k]), err
}
