package vitals

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"unicode"

	"github.com/cleave-project/cleave/api"
)

// A frame on the disk, numbers little-endian:
//
//	 0  magic     8 bytes
//	 8  version   4
//	12  length    4 of the text
//	16  count     8 of the writes; 0 for the boot text
//	24  check     4 CRC-32C of bytes 0 to 23 and the text
//	28  zero      4
//	32  text      JSON
//
// The status has two slots, written in turn: one that was torn leaves the
// other, and the higher count is the newer.
const (
	frameHead   = 32
	version     = 1
	slots       = 2
	slotSize    = StatusSize / slots
	maxStatus   = slotSize - frameHead
	maxBoot     = HatchOffset - StatusSize - frameHead
	statusMagic = "CLVSTATE"
	bootMagic   = "CLVBOOT\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Disk is a control disk.
type Disk interface {
	io.ReaderAt
	io.WriterAt
}

// ErrDamaged is the error for a disk that doesn't hold what was looked for.
var ErrDamaged = errors.New("the control disk is damaged")

// WriteBoot makes f a control disk that tells b, with a fresh status. The
// caller makes it Size bytes long.
func WriteBoot(f io.WriterAt, b *Boot) error {
	text, err := bootText(b)
	if err != nil {
		return err
	}
	fresh, err := json.Marshal(Status{Phase: PhaseBooting})
	if err != nil {
		return err
	}
	status := make([]byte, StatusSize)
	copy(status, frame(statusMagic, 1, fresh))
	if _, err := f.WriteAt(status, 0); err != nil {
		return fmt.Errorf("control disk: %w", err)
	}
	if _, err := f.WriteAt(frame(bootMagic, 0, text), StatusSize); err != nil {
		return fmt.Errorf("control disk: %w", err)
	}
	return nil
}

func bootText(b *Boot) ([]byte, error) {
	text, err := json.Marshal(b)
	if err == nil && len(text) > maxBoot {
		err = api.Errorf(api.CodeInvalid, "control disk: arguments, environment and files of the guest are %d bytes, at most %d fit", len(text), maxBoot)
	}
	return text, err
}

// RewriteBoot changes what f tells of a guest that runs, for when it boots
// anew by itself. Its status stays.
func RewriteBoot(f io.WriterAt, b *Boot) error {
	text, err := bootText(b)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(frame(bootMagic, 0, text), StatusSize); err != nil {
		return fmt.Errorf("control disk: %w", err)
	}
	return nil
}

// ReadBoot reads what WriteBoot wrote.
func ReadBoot(f io.ReaderAt) (*Boot, error) {
	_, text, err := readFrame(f, StatusSize, bootMagic, maxBoot)
	if err != nil {
		return nil, err
	}
	b := &Boot{}
	if err := json.Unmarshal(text, b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return b, nil
}

// WriteStatus replaces the older of the two statuses. The caller makes it
// durable, or has opened f so.
func WriteStatus(f Disk, s *Status) error {
	newest, _ := newest(f)
	text, err := statusText(*s)
	if err != nil {
		return err
	}
	slot := make([]byte, slotSize)
	copy(slot, frame(statusMagic, newest.count+1, text))
	at := (newest.slot + 1) % slots * slotSize
	if _, err := f.WriteAt(slot, int64(at)); err != nil {
		return fmt.Errorf("control disk: write status: %w", err)
	}
	return nil
}

// statusText is s in JSON, with an error shortened until it fits.
func statusText(s Status) ([]byte, error) {
	for limit := maxText; ; limit /= 2 {
		if s.Error != nil {
			e := *s.Error
			e.Message, e.Hint, e.Field = printable(e.Message, limit), printable(e.Hint, limit), printable(e.Field, limit)
			s.Error = &e
		}
		text, err := json.Marshal(s)
		if err != nil || len(text) <= maxStatus {
			return text, err
		}
		if s.Error == nil || limit == 0 {
			return nil, fmt.Errorf("control disk: a status of %d bytes doesn't fit", len(text))
		}
	}
}

// ReadStatus reads the newest whole status. Everything in it is bounded and
// fit to be shown; that it is true only the guest knows.
func ReadStatus(f io.ReaderAt) (Status, error) {
	n, err := newest(f)
	if err != nil {
		return Status{}, err
	}
	return sound(n.status), nil
}

// found is the newest status on a disk.
type found struct {
	slot   int
	count  uint64
	status Status
}

func newest(f io.ReaderAt) (found, error) {
	best, errs := found{}, make([]error, slots)
	for slot := range slots {
		count, text, err := readFrame(f, int64(slot*slotSize), statusMagic, maxStatus)
		var s Status
		if err == nil {
			err = json.Unmarshal(text, &s)
		}
		if errs[slot] = err; err == nil && count > best.count {
			best = found{slot, count, s}
		}
	}
	if best.count == 0 {
		return found{slot: slots - 1}, fmt.Errorf("%w: no status: %w", ErrDamaged, errors.Join(errs...))
	}
	return best, nil
}

func frame(magic string, count uint64, text []byte) []byte {
	b := make([]byte, frameHead, frameHead+len(text))
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], uint32(len(text)))
	binary.LittleEndian.PutUint64(b[16:], count)
	binary.LittleEndian.PutUint32(b[24:], check(b, text))
	return append(b, text...)
}

func check(head, text []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:24], castagnoli), castagnoli, text)
}

func readFrame(f io.ReaderAt, at int64, magic string, limit int) (count uint64, text []byte, err error) {
	head := make([]byte, frameHead)
	if _, err := f.ReadAt(head, at); err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if string(head[:8]) != magic {
		return 0, nil, fmt.Errorf("%w: it doesn't begin as it should", ErrDamaged)
	}
	if v := binary.LittleEndian.Uint32(head[8:]); v != version {
		return 0, nil, fmt.Errorf("control disk: format %d is not known", v)
	}
	size := binary.LittleEndian.Uint32(head[12:])
	if uint64(size) > uint64(limit) {
		return 0, nil, fmt.Errorf("%w: a text of %d bytes", ErrDamaged, size)
	}
	text = make([]byte, size)
	if n, err := f.ReadAt(text, at+frameHead); n < len(text) {
		return 0, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if binary.LittleEndian.Uint32(head[24:]) != check(head, text) {
		return 0, nil, fmt.Errorf("%w: its check sum is wrong", ErrDamaged)
	}
	return binary.LittleEndian.Uint64(head[16:]), text, nil
}

// Bounds of what a guest may say.
const (
	maxText  = 1 << 10
	maxBoots = 1 << 20
)

var (
	phases  = []Phase{PhaseBooting, PhaseRunning, PhaseEnding, PhaseEnded}
	reasons = []string{"exit", "poweroff", "reboot", "panic"}
)

// sound is s as far as it can be meant.
func sound(s Status) Status {
	if !slices.Contains(phases, s.Phase) {
		s.Phase = PhaseBooting
	}
	s.Boots = min(max(s.Boots, 0), maxBoots)
	if s.Exit.Code < -1 || s.Exit.Code > 255 {
		s.Exit.Code = -1
	}
	if !signalName(s.Exit.Signal) {
		s.Exit.Signal = ""
	}
	if !slices.Contains(reasons, s.Exit.Reason) {
		s.Exit.Reason = ""
	}
	if e := s.Error; e != nil {
		code := e.Code
		if code.Status() == api.CodeInternal.Status() {
			code = api.CodeInternal // or one that doesn't exist
		}
		s.Error = api.Errorf(code, "%s", printable(e.Message, maxText)).WithField(printable(e.Field, 100))
		if e.Hint != "" {
			s.Error = s.Error.WithHint("%s", printable(e.Hint, maxText))
		}
	}
	return s
}

func signalName(s string) bool {
	rest, ok := strings.CutPrefix(s, "SIG")
	return ok && len(rest) <= 12 && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-") == ""
}

// printable shortens s to n bytes and takes out what a terminal would obey.
func printable(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}
