package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Version is the newest version of the protocol that this code speaks, and
// Oldest the oldest. A session speaks the lower of both sides' newest.
const (
	Version = 2
	Oldest  = 1
)

// The hello. Every frame of it is a magic of 8 bytes, a 2-byte big-endian
// length, and as much JSON:
//
//	host   "\xc1CLEAVE>" Hello   repeated until answered
//	guest  "\xc1CLEAVE<" Hello   for each, with the same nonce and number
//	host   "\xc1CLEAVE!" Hello   with that nonce: the session begins
//
// A serial line may hold the rest of an earlier session, lose bytes, echo
// what it is sent, or begin before the guest listens. So both sides skip
// what is no frame of the other's, the nonce tells an answer from an older
// one, and the number tells the host when no further answer is on its way.
// The first byte is neither a yamux version, so that a session left over on
// the other side ends with it, nor ever part of UTF-8 text.
const (
	magic     = "\xc1CLEAVE"
	fromHost  = '>'
	fromGuest = '<'
	begin     = '!'

	maxHello = 4 << 10
	// maxGarbage is how much the host skips before it takes the other side
	// for no agent.
	maxGarbage = 16 << 20
	// resend is longer than a healthy guest takes, and short enough for a
	// serial line whose guest is still booting.
	resend = time.Second
)

// Hello is what each side says of itself.
type Hello struct {
	Version int    `json:"version"`
	Oldest  int    `json:"oldest"`
	Nonce   string `json:"nonce"`
	Number  int    `json:"number,omitempty"`
}

func frame(role byte, h Hello) []byte {
	body, err := json.Marshal(h)
	if err != nil {
		panic(err) // ints and a string
	}
	b := append([]byte(magic), role)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// scan returns the next frame from a side with one of the roles, and how many
// bytes that are no such frame it skipped, at most limit of them (no bound if
// negative).
func scan(r *bufio.Reader, roles string, limit int64) (role byte, h Hello, err error) {
	var read int64
	matched := 0
	for limit < 0 || read < limit {
		c, err := r.ReadByte()
		if err != nil {
			return 0, h, err
		}
		read++
		switch {
		case matched < len(magic) && c == magic[matched]:
			matched++
			continue
		case matched == len(magic) && bytes.IndexByte([]byte(roles), c) >= 0:
			h, ok, err := readHello(r)
			if err != nil {
				return 0, h, err
			}
			if ok {
				return c, h, nil
			}
			matched = 0
		case c == magic[0]: // it occurs nowhere else in the magic
			matched = 1
		default:
			matched = 0
		}
	}
	return 0, h, errNoHello
}

// readHello reads what follows a magic; it isn't ok when that is no hello.
func readHello(r *bufio.Reader) (h Hello, ok bool, err error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return h, false, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxHello {
		return h, false, nil
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return h, false, err
	}
	return h, json.Unmarshal(body, &h) == nil, nil
}

var errNoHello = api.Errorf(api.CodeUnavailable, "greeting the guest's agent: something else answers")

// Greet is the host's side of the hello. It returns the version to speak. It
// ends with ctx only if the caller closes rw then.
func Greet(ctx context.Context, r *bufio.Reader, w io.Writer) (version int, err error) {
	g := greeting{w: w, nonce: rand.Text()}
	if err := g.send(); err != nil {
		return 0, err
	}
	stop := make(chan struct{})
	var again sync.WaitGroup
	again.Go(func() { g.repeat(ctx, stop) })
	defer again.Wait()
	defer sync.OnceFunc(func() { close(stop) })()

	for {
		_, h, err := scan(r, string(fromGuest), maxGarbage)
		if err != nil {
			return 0, err
		}
		if h.Nonce != g.nonce || !g.last(h.Number) {
			continue
		}
		version = min(h.Version, Version)
		if version < h.Oldest || version < Oldest {
			return 0, api.Errorf(api.CodeUnsupported, "greeting the guest's agent: it speaks versions %d to %d, this host %d to %d",
				h.Oldest, h.Version, Oldest, Version).WithHint("restart the instance to give it this host's agent")
		}
		_, err = w.Write(frame(begin, Hello{Version: version, Oldest: Oldest, Nonce: g.nonce}))
		return version, err
	}
}

// greeting is the host's side while it waits for an answer.
type greeting struct {
	w     io.Writer
	nonce string

	mu   sync.Mutex // guards what follows, and w
	sent int
	done bool
}

func (g *greeting) send() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done {
		return nil
	}
	g.sent++
	_, err := g.w.Write(frame(fromHost, Hello{Version: Version, Oldest: Oldest, Nonce: g.nonce, Number: g.sent}))
	return err
}

func (g *greeting) repeat(ctx context.Context, stop <-chan struct{}) {
	t := time.NewTicker(resend)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if g.send() != nil {
				return // the reader sees it too
			}
		case <-ctx.Done():
			return
		case <-stop:
			return
		}
	}
}

// last tells whether number is that of the newest hello; if so none will be
// sent any more.
func (g *greeting) last(number int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done = number == g.sent
	return g.done
}

// Answer is the guest's side of the hello: it answers until the session
// begins.
func Answer(r *bufio.Reader, w io.Writer) (version int, err error) {
	nonce := ""
	for {
		role, h, err := scan(r, string(fromHost)+string(begin), -1)
		if err != nil {
			return 0, err
		}
		if role == begin {
			if h.Nonce == nonce && nonce != "" {
				return min(h.Version, Version), nil
			}
			continue // of a session that is no more
		}
		nonce = h.Nonce
		if _, err := w.Write(frame(fromGuest, Hello{Version: Version, Oldest: Oldest, Nonce: nonce, Number: h.Number})); err != nil {
			return 0, err
		}
	}
}
