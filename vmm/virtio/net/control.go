package net

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Classes of commands, and commands (5.1.6.5).
const (
	classRX       = 0
	rxNoBroadcast = 5

	classMAC    = 1
	macTableSet = 0
	macAddrSet  = 1

	classAnnounce = 3
	announceAck   = 0

	classMQ    = 4
	mqPairsSet = 0

	classOffloads = 5
	offloadsSet   = 0

	ackOK    = 0
	ackError = 1
	// maxTable bounds a table of addresses, with their number.
	maxTable = 64 << 10
)

// control handles a command of the driver.
func (d *Device) control(c *virtio.Chain) (uint32, error) {
	var head [2]byte
	rest, ok := virtio.Pull(c.Readable, head[:])
	_, ack, room := virtio.CutLast(c.Writable)
	if !ok || !room {
		return 0, fmt.Errorf("%w: a control command without head or room for an answer", virtio.ErrQueue)
	}
	ack[0] = ackError
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.command(head[0], head[1], rest) {
		ack[0] = ackOK
	}
	return 1, nil
}

// command does one, and returns whether it could.
func (d *Device) command(class, command byte, data [][]byte) bool {
	le := binary.LittleEndian
	var b [8]byte
	switch {
	case class == classRX && command <= rxNoBroadcast:
		return exactly(data, b[:1])
	case class == classMAC && command == macTableSet:
		return isTable(data)
	case class == classMAC && command == macAddrSet:
		if !exactly(data, b[:6]) {
			return false
		}
		d.mac = MAC(b[:6])
		return true
	case class == classAnnounce && command == announceAck && d.features&FeatureAnnounce != 0:
		d.announce = false
		return true
	case class == classMQ && command == mqPairsSet && d.features&FeatureMQ != 0:
		n := 0
		if exactly(data, b[:2]) {
			n = int(le.Uint16(b[:]))
		}
		return n >= 1 && n <= len(d.ports) && d.setPairs(n) == nil
	case class == classOffloads && command == offloadsSet && d.features&FeatureGuestOffloads != 0:
		if !exactly(data, b[:8]) {
			return false
		}
		f := le.Uint64(b[:])
		if f&^(d.features&guestOffloads) != 0 {
			return false
		}
		before := d.offloads
		d.offloads = &f
		if d.setOffloads() != nil {
			d.offloads = before
			return false
		}
		return true
	}
	return false
}

// exactly fills p from data, of which there must be no more.
func exactly(data [][]byte, p []byte) bool {
	if virtio.Length(data) != len(p) {
		return false
	}
	_, ok := virtio.Pull(data, p)
	return ok
}

// isTable tells whether data are two lists of addresses, for one and for
// groups, each with its number before it (5.1.6.5.2).
func isTable(data [][]byte) bool {
	left := virtio.Length(data)
	if left > maxTable {
		return false
	}
	for range 2 {
		var b [4]byte
		var ok bool
		if data, ok = virtio.Pull(data, b[:]); !ok {
			return false
		}
		left -= 4
		n := binary.LittleEndian.Uint32(b[:])
		if uint64(n)*6 > uint64(left) {
			return false
		}
		skip := int(n) * 6
		left -= skip
		for skip > 0 {
			k := min(skip, len(data[0]))
			skip -= k
			if data[0] = data[0][k:]; len(data[0]) == 0 {
				data = data[1:]
			}
		}
	}
	return left == 0
}
