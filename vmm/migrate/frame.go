package migrate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// version is the protocol's.
const version = 2

type kind byte

const (
	kindHello kind = iota + 1
	kindData
	kindZero
	kindSync
	kindState
	kindGo
	kindAbort
	kindWelcome
	kindSynced
	kindReady
	kindRunning
	kindLater
	kindWant
	kindWhole
)

// Bounds of payloads.
const (
	maxData  = 256 << 10
	maxText  = 64 << 10
	maxState = 64 << 20
	// maxZero is how much a source has be zeroed at once: some disks write it.
	maxZero = 64 << 20
)

// most is how long the payload of a frame may be.
func (k kind) most() uint32 {
	switch k {
	case kindData:
		return maxData
	case kindHello, kindAbort:
		return maxText
	case kindState:
		return maxState
	}
	return 0
}

const headSize = 24

// head begins a frame.
type head struct {
	kind   kind
	volume uint8
	length uint32
	offset uint64
	size   uint64
}

// errProtocol is the fault of who sends what can't be.
var errProtocol = errors.New("broken migration stream")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errProtocol, fmt.Sprintf(format, args...))
}

func (h *head) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, byte(h.kind), h.volume, 0, 0)
	b = le.AppendUint32(b, h.length)
	b = le.AppendUint64(b, h.offset)
	return le.AppendUint64(b, h.size)
}

func readHead(r io.Reader) (h head, err error) {
	var b [headSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, fmt.Errorf("read a frame: %w", err)
	}
	le := binary.LittleEndian
	h = head{kind(b[0]), b[1], le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:])}
	switch {
	case h.kind < kindHello || h.kind > kindWhole || b[2] != 0 || b[3] != 0:
		return h, broken("a frame of kind %d", b[0])
	case h.length > h.kind.most():
		return h, broken("a frame of kind %d with %d bytes", h.kind, h.length)
	case h.kind != kindZero && h.kind != kindLater && h.kind != kindWant && h.size != 0:
		return h, broken("a frame of kind %d that has a size", h.kind)
	}
	return h, nil
}

// payload reads what a head announced. Memory is taken as bytes come, not
// as many as were announced.
func (h *head) payload(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(h.length)))
	if err == nil && len(b) < int(h.length) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read a frame: %w", err)
	}
	return b, nil
}
