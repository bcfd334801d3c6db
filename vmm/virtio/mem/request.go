package mem

import (
	"encoding/binary"
	"fmt"

	"github.com/cleave-project/cleave/vmm/virtio"
)

// Requests and answers (5.15.6).
const (
	reqPlug      = 0
	reqUnplug    = 1
	reqUnplugAll = 2
	reqState     = 3

	ack     = 0
	nack    = 1
	refused = 3 // VIRTIO_MEM_RESP_ERROR

	allPlugged   = 0
	allUnplugged = 1
	mixed        = 2

	requestSize = 24
	answerSize  = 10
)

// handle answers a request.
func (d *Device) handle(c *virtio.Chain) (uint32, error) {
	var b [requestSize]byte
	var answer [answerSize]byte
	if _, ok := virtio.Pull(c.Readable, b[:]); !ok || virtio.Length(c.Writable) < answerSize {
		return 0, fmt.Errorf("%w: a request without room for its answer, or cut short", virtio.ErrQueue)
	}
	le := binary.LittleEndian
	d.mu.Lock()
	defer d.mu.Unlock()
	kind, state := d.answer(le.Uint16(b[:]), le.Uint64(b[8:]), uint64(le.Uint16(b[16:])))
	le.PutUint16(answer[:], kind)
	le.PutUint16(answer[8:], state)
	virtio.Push(c.Writable, answer[:])
	return answerSize, nil
}

func (d *Device) answer(request uint16, addr, n uint64) (kind, state uint16) {
	if request == reqUnplugAll {
		return d.unplugAll(), 0
	}
	first := (addr - d.options.Addr) / BlockSize
	usable := d.usable / BlockSize
	if request > reqState || addr < d.options.Addr || addr%BlockSize != 0 || n == 0 || first >= usable || n > usable-first {
		return refused, 0
	}
	plugged := uint64(0)
	for _, p := range d.blocks[first : first+n] {
		if p {
			plugged++
		}
	}
	switch {
	case request == reqState && plugged == n:
		return ack, allPlugged
	case request == reqState && plugged == 0:
		return ack, allUnplugged
	case request == reqState:
		return ack, mixed
	case request == reqPlug && plugged > 0, request == reqUnplug && plugged < n:
		return refused, 0
	case request == reqPlug:
		return d.plug(first, n), 0
	default:
		return d.unplug(first, n), 0
	}
}

// plug gives blocks to the guest, unless it would have more than it shall.
func (d *Device) plug(first, n uint64) uint16 {
	if d.plugged+n*BlockSize > d.requested {
		return nack
	}
	if d.access(first, n, true) != nil {
		return nack
	}
	d.set(first, n, true)
	return ack
}

// unplug takes blocks back.
func (d *Device) unplug(first, n uint64) uint16 {
	if d.discard(d.options.Addr+first*BlockSize, n*BlockSize) != nil || d.access(first, n, false) != nil {
		return nack
	}
	d.set(first, n, false)
	return ack
}

func (d *Device) set(first, n uint64, plugged bool) {
	for i := first; i < first+n; i++ {
		d.blocks[i] = plugged
	}
	if plugged {
		d.plugged += n * BlockSize
	} else {
		d.plugged -= n * BlockSize
	}
	close(d.moved)
	d.moved = make(chan struct{})
}

// unplugAll takes all blocks back.
func (d *Device) unplugAll() uint16 {
	for i, plugged := range d.blocks {
		if plugged && d.unplug(uint64(i), 1) != ack {
			return nack
		}
	}
	d.usable = min(d.options.Size, d.requested+slack)
	return ack
}
