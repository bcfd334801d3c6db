package disk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Numbers of the protocol (doc/proto.md, "Values").
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x3e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optInfo       = 6
	optGo         = 7

	repAck      = 1
	repInfo     = 3
	repErrUnsup = 1<<31 + 1
	repErrInval = 1<<31 + 3

	infoExport    = 0
	infoBlockSize = 3

	exportFlags = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	cmdFlagFUA = 1 << 0
)

// Bounds of what a client may ask for.
const (
	maxOption  = 4 << 10
	maxRequest = 32 << 20 // "SHOULD support at least 32 MiB", maximum block size
)

// Serve is the disk for one client, until that has gone or conn is closed.
// It closes conn.
func (d *Disk) Serve(conn net.Conn) error {
	defer conn.Close()
	c := &client{d: d, r: bufio.NewReaderSize(conn, 64<<10), w: bufio.NewWriterSize(conn, 64<<10)}
	ready, err := c.greet()
	if err == nil && ready {
		err = c.serve()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}

// client is one connection.
type client struct {
	d   *Disk
	r   *bufio.Reader
	w   *bufio.Writer
	buf []byte
}

func (c *client) put(fields ...any) {
	for _, f := range fields {
		// A bufio.Writer keeps its first error for Flush.
		_ = binary.Write(c.w, binary.BigEndian, f)
	}
}

// greet is the handshake ("Fixed newstyle negotiation"). It tells whether
// transmission begins.
func (c *client) greet() (bool, error) {
	c.put(uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes))
	if err := c.w.Flush(); err != nil {
		return false, err
	}
	var flags uint32
	if err := binary.Read(c.r, binary.BigEndian, &flags); err != nil {
		return false, err
	}
	for {
		var h struct {
			Magic       uint64
			Option, Len uint32
		}
		if err := binary.Read(c.r, binary.BigEndian, &h); err != nil {
			return false, err
		}
		if h.Magic != magicOption || h.Len > maxOption {
			return false, fmt.Errorf("nbd: a wrong option, magic %x with %d bytes", h.Magic, h.Len)
		}
		data := make([]byte, h.Len)
		if _, err := io.ReadFull(c.r, data); err != nil {
			return false, err
		}
		done, err := c.option(h.Option, data, flags&flagNoZeroes != 0)
		if err == nil {
			err = c.w.Flush()
		}
		if done || err != nil {
			return done && h.Option != optAbort, err
		}
	}
}

// option answers one option, and tells whether that ends the handshake.
func (c *client) option(option uint32, data []byte, noZeroes bool) (bool, error) {
	reply := func(kind uint32, payload ...any) {
		n := 0
		for _, p := range payload {
			n += binary.Size(p)
		}
		c.put(uint64(magicReply), option, kind, uint32(n))
		c.put(payload...)
	}
	switch option {
	case optExportName: // whatever the name: there is one disk
		c.put(uint64(c.d.size), uint16(exportFlags))
		if !noZeroes {
			c.put([124]byte{})
		}
		return true, nil
	case optAbort:
		reply(repAck)
		return true, nil
	case optInfo, optGo:
		if len(data) < 6 {
			reply(repErrInval)
			return false, nil
		}
		reply(repInfo, uint16(infoExport), uint64(c.d.size), uint16(exportFlags))
		reply(repInfo, uint16(infoBlockSize), uint32(sector), uint32(block), uint32(maxRequest))
		reply(repAck)
		return option == optGo, nil
	}
	reply(repErrUnsup)
	return false, nil
}

// request is the header of one ("Request message").
type request struct {
	Magic       uint32
	Flags, Type uint16
	Cookie, Off uint64
	Len         uint32
}

func (c *client) serve() error {
	for {
		// Replies wait while there are requests to answer.
		if c.r.Buffered() == 0 {
			if err := c.w.Flush(); err != nil {
				return err
			}
		}
		var q request
		if err := binary.Read(c.r, binary.BigEndian, &q); err != nil {
			return err
		}
		if q.Magic != magicRequest {
			return fmt.Errorf("nbd: a wrong request, magic %x", q.Magic)
		}
		if q.Type == cmdDisc {
			return c.w.Flush()
		}
		if (q.Type == cmdRead || q.Type == cmdWrite) && q.Len > maxRequest {
			return fmt.Errorf("nbd: a request of %d bytes", q.Len)
		}
		data, err := c.answer(q)
		var broken *brokenError
		if errors.As(err, &broken) {
			return broken.err
		}
		c.put(uint32(magicSimple), errno(err), q.Cookie)
		if err == nil {
			_, _ = c.w.Write(data)
		}
	}
}

// brokenError is the connection's, and not the request's.
type brokenError struct{ err error }

func (e *brokenError) Error() string { return e.err.Error() }

// answer does what a request asks for, and returns what it read.
func (c *client) answer(q request) ([]byte, error) {
	off, n := int64(q.Off), int64(q.Len)
	if q.Type == cmdRead || q.Type == cmdWrite {
		if len(c.buf) < int(n) {
			c.buf = make([]byte, n)
		}
	}
	var err error
	switch q.Type {
	case cmdRead:
		p := c.buf[:n]
		_, err = c.d.ReadAt(p, off)
		return p, err
	case cmdWrite:
		p := c.buf[:n]
		if _, err := io.ReadFull(c.r, p); err != nil {
			return nil, &brokenError{err}
		}
		if q.Flags&cmdFlagFUA != 0 {
			return nil, c.d.WriteThrough(p, off)
		}
		_, err = c.d.WriteAt(p, off)
	case cmdFlush:
		err = c.d.Flush()
	case cmdTrim, cmdWriteZeroes:
		err = c.d.Zero(off, n)
	default:
		err = errRange
	}
	return nil, err
}

// errno is an error in the protocol's terms ("Error values").
func errno(err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errRange):
		return uint32(unix.EINVAL)
	case errors.Is(err, unix.ENOSPC):
		return uint32(unix.ENOSPC)
	}
	return uint32(unix.EIO)
}
