package vsock

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// handle does what a packet of the guest says.
func (d *Device) handle(h header, data [][]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := key{host: h.dstPort, guest: h.srcPort}
	c := d.conns[k]
	switch {
	case h.srcCID != uint64(d.options.CID):
		return // who it says to be can't be answered
	case h.dstCID != hostCID || h.kind != typeStream:
		d.refuse(h)
		return
	case h.op == opReset:
		if c != nil {
			d.drop(c)
		}
		return
	case h.op == opRequest && c == nil:
		d.request(h, k)
		return
	case c == nil:
		d.refuse(h)
		return
	}
	c.peerAlloc, c.peerForwarded = h.bufAlloc, h.fwdCnt
	c.changed.Broadcast()
	switch {
	case h.op == opResponse && !c.established && c.sock != nil:
		d.accepted(c)
	case !c.established:
		d.reset(c)
	case h.op == opData:
		d.data(c, h, data)
	case h.op == opShutdown:
		c.guestShut |= h.flags & shutdownBoth
		c.settle()
	case h.op == opCreditRequest:
		c.told = c.forwarded.Load()
		c.push(opCreditUpdate, 0)
	case h.op == opCreditUpdate:
	default:
		d.reset(c)
	}
}

// refuse answers a packet that is for nobody with a reset.
func (d *Device) refuse(h header) {
	if h.op != opReset {
		d.rx.push(header{srcPort: h.dstPort, dstPort: h.srcPort, op: opReset})
	}
}

// data takes what the guest has sent, which it must have room for.
func (d *Device) data(c *conn, h header, data [][]byte) {
	if c.received-c.forwarded.Load()+h.length > bufAlloc || h.length > bufAlloc || c.guestShut&shutdownSend != 0 {
		d.reset(c)
		return
	}
	n := int(h.length)
	at := len(c.out)
	if cap(c.out)-at < n {
		c.out = append(c.out, make([]byte, n)...)
	}
	c.out = c.out[:at+n]
	virtio.Pull(data, c.out[at:])
	c.received += h.length
}

// request connects the guest to the host.
func (d *Device) request(h header, k key) {
	if d.options.Dial == nil {
		d.refuse(h)
		return
	}
	c := d.newConn(k, nil)
	if c == nil {
		d.refuse(h)
		return
	}
	c.peerAlloc, c.peerForwarded = h.bufAlloc, h.fwdCnt
	d.group.Go(func() {
		sock, err := d.options.Dial(k.host)
		d.mu.Lock()
		defer d.mu.Unlock()
		switch {
		case err != nil:
			d.reset(c)
		case c.over.Load():
			_ = sock.Close()
		default:
			c.sock = sock
			c.push(opResponse, 0)
			d.start(c)
		}
	})
}

// accept takes connections of the host's programs, until the listener is
// closed.
func (d *Device) accept() {
	for {
		sock, err := d.options.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(pause) // no descriptors are left: nothing tells when there are
			continue
		}
		d.group.Go(func() {
			if d.ask(sock) != nil {
				_ = sock.Close()
			}
		})
	}
}

const (
	// patience is how long a program of the host may take to say where it
	// wants to.
	patience = 10 * time.Second
	maxLine  = 32
	// pause is how long no connections are taken after one couldn't be.
	pause = 100 * time.Millisecond
)

// ask connects a program of the host to the guest.
func (d *Device) ask(sock net.Conn) error {
	_ = sock.SetReadDeadline(time.Now().Add(patience))
	port, err := readConnect(sock)
	if err != nil {
		return err
	}
	_ = sock.SetReadDeadline(time.Time{})
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.active {
		return fmt.Errorf("the guest has no driver at work")
	}
	k := key{host: d.nextPort, guest: port}
	for d.conns[k] != nil {
		k.host++
	}
	if d.nextPort = k.host + 1; d.nextPort == 0xffffffff {
		d.nextPort = firstPort
	}
	c := d.newConn(k, sock)
	if c == nil {
		return fmt.Errorf("there are %d connections", maxConns)
	}
	c.push(opRequest, 0)
	return nil
}

// readConnect reads a line "CONNECT P", and not a byte behind it.
func readConnect(r io.Reader) (uint32, error) {
	line, err := bufio.NewReaderSize(onebyte{io.LimitReader(r, maxLine)}, 16).ReadString('\n')
	if err != nil {
		return 0, err
	}
	word, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "CONNECT ")
	if !ok {
		return 0, fmt.Errorf("%q isn't CONNECT and a port", line)
	}
	port, err := strconv.ParseUint(word, 10, 32)
	return uint32(port), err
}

// onebyte is a reader of single bytes: what is behind the line is the guest's.
type onebyte struct{ io.Reader }

func (o onebyte) Read(b []byte) (int, error) { return o.Reader.Read(b[:min(len(b), 1)]) }

// accepted tells the host's program that the guest has taken its connection.
func (d *Device) accepted(c *conn) {
	c.established = true
	d.group.Go(func() {
		_, err := fmt.Fprintf(c.sock, "OK %d\n", c.host)
		d.mu.Lock()
		defer d.mu.Unlock()
		if err != nil {
			d.reset(c)
			return
		}
		if !c.over.Load() {
			d.start(c)
		}
	})
}
