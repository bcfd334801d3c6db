package wire

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

func TestMessagesSurviveTheWire(t *testing.T) {
	var b bytes.Buffer
	want := Request{Op: OpExec, Streams: 2, Exec: &api.ExecRequest{Command: []string{"a", "\x00\xff"}, TTY: true}}
	want.Exec.Command[1] = "ü"
	if err := WriteMessage(&b, want); err != nil {
		t.Fatal(err)
	}
	var got Request
	if err := ReadMessage(iotest.OneByteReader(&b), MaxRequest, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := ReadMessage(&b, MaxRequest, &got); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

func TestReadMessageIsBounded(t *testing.T) {
	for name, in := range map[string]string{
		"oversized": "\xff\xff\xff\xff{}",
		"cut":       "\x00\x00\x00\x05{}",
		"cut head":  "\x00\x00",
		"no JSON":   "\x00\x00\x00\x02{]",
	} {
		var v Reply
		if err := ReadMessage(strings.NewReader(in), MaxReply, &v); err == nil || err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// greet lets both sides of a hello meet, with noise on the line.
func greet(t *testing.T, toGuest, toHost string) {
	t.Helper()
	host, guest := net.Pipe()
	defer host.Close()
	defer guest.Close()
	hostR := bufio.NewReader(io.MultiReader(strings.NewReader(toHost), host))
	guestR := bufio.NewReader(io.MultiReader(strings.NewReader(toGuest), guest))
	var both sync.WaitGroup
	both.Go(func() {
		version, err := Greet(t.Context(), hostR, host)
		if err != nil || version != Version {
			t.Errorf("host: %d, %v", version, err)
		}
		io.WriteString(host, "after")
	})
	both.Go(func() {
		version, err := Answer(guestR, guest)
		if err != nil || version != Version {
			t.Errorf("guest: %d, %v", version, err)
		}
		// What follows the hello must be the session's, to the byte.
		rest := make([]byte, 5)
		if _, err := io.ReadFull(guestR, rest); err != nil || string(rest) != "after" {
			t.Errorf("after the hello came %q, %v", rest, err)
		}
	})
	both.Wait()
}

func TestHelloResynchronises(t *testing.T) {
	old := Hello{Version: 1, Oldest: 1, Nonce: "OLD", Number: 1}
	for name, noise := range map[string]string{
		"quiet":         "",
		"text":          "login: \r\n",
		"half a magic":  magic[:4],
		"magics":        magic + magic + magic[:1],
		"cut":           string(frame(fromHost, old)[:12]),
		"older hellos":  string(frame(fromHost, old)) + string(frame(fromGuest, old)) + string(frame(begin, old)),
		"no JSON":       magic + "<\x00\x02{]" + magic + ">\x00\x02{]",
		"a long length": magic + "<\xff\xff" + magic + ">\xff\xff",
		"zeros":         strings.Repeat("\x00", 100000),
	} {
		t.Run(name, func(t *testing.T) {
			toGuest := noise
			if name == "older hellos" || name == "cut" {
				toGuest = "" // the guest would answer those, and there is nobody to read it
			}
			greet(t, toGuest, noise)
		})
	}
}

// The guest of a serial line may begin to listen after the first hello went by.
func TestHelloIsRepeatedUntilTheGuestListens(t *testing.T) {
	host, guest := net.Pipe()
	defer host.Close()
	defer guest.Close()
	lost := make([]byte, 30)
	go func() {
		io.ReadFull(guest, lost) // the first bytes are lost
		Answer(bufio.NewReader(guest), guest)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if version, err := Greet(ctx, bufio.NewReader(host), host); err != nil || version != Version {
		t.Errorf("%d, %v", version, err)
	}
}

func TestGreetRefusesOtherVersions(t *testing.T) {
	for _, tc := range []struct {
		h  Hello
		ok bool
	}{
		{Hello{Version: Version, Oldest: Oldest}, true},
		{Hello{Version: 99, Oldest: Oldest}, true},
		{Hello{Version: 99, Oldest: 98}, false},
		{Hello{Version: 0, Oldest: 0}, false},
		{Hello{Version: -5, Oldest: 99}, false},
	} {
		host, guest := net.Pipe()
		go func() {
			r := bufio.NewReader(guest)
			_, h, err := scan(r, string(fromHost), -1)
			if err == nil {
				h.Version, h.Oldest = tc.h.Version, tc.h.Oldest
				guest.Write(frame(fromGuest, h))
			}
			io.Copy(io.Discard, r)
		}()
		_, err := Greet(t.Context(), bufio.NewReader(host), host)
		if (err == nil) != tc.ok || err != nil && !api.IsCode(err, api.CodeUnsupported) {
			t.Errorf("%+v: %v", tc.h, err)
		}
		host.Close()
		guest.Close()
	}
}

func TestGreetGivesUpOnEndlessGarbage(t *testing.T) {
	endless := bufio.NewReader(&repeat{data: []byte(magic + "<\x00\x02{]spam")})
	if _, err := Greet(t.Context(), endless, io.Discard); !api.IsCode(err, api.CodeUnavailable) {
		t.Errorf("got %v", err)
	}
}

type repeat struct {
	data []byte
	at   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	return n, nil
}

func muxFrame(version, kind byte, flags uint16, id, length uint32) []byte {
	b := []byte{version, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, id)
	return binary.BigEndian.AppendUint32(b, length)
}

func TestGuardLetsThroughWhatAGuestMaySend(t *testing.T) {
	data := append(muxFrame(0, 0, 2, 1, 5), "hello"...)
	good := bytes.Join([][]byte{muxFrame(0, 1, 2, 1, 100), data, muxFrame(0, 1, 4, 3, 0), muxFrame(0, 1, 8, 5, 0), data}, nil)
	for name, bad := range map[string][]byte{
		"nothing": nil,
		"ping":    muxFrame(0, 2, 1, 0, 7),
		"go away": muxFrame(0, 3, 0, 0, 0),
		"stream":  muxFrame(0, 1, 1, 2, 0),
		"syn":     muxFrame(0, 0, 1, 1, 0),
		"id":      muxFrame(0, 0, 0, 2, 0),
		"flags":   muxFrame(0, 0, 0x100, 1, 0),
		"version": muxFrame(1, 0, 0, 1, 0),
		"hello":   []byte("\xc1CLEAVE<xxxxxxxxxx"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, reader := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader} {
				in := reader(bytes.NewReader(append(bytes.Clone(good), bad...)))
				g := &guarded{transport: transport{r: bufio.NewReader(in)}}
				got, err := io.ReadAll(readerOnly{g})
				if bad == nil && (err != nil || !bytes.Equal(got, good)) {
					t.Errorf("got %q, %v", got, err)
				}
				if bad != nil && (err == nil || !strings.Contains(err.Error(), "protocol")) {
					t.Errorf("got %v", err)
				}
				if _, again := g.Read(make([]byte, 1)); bad != nil && !errors.Is(again, err) {
					t.Errorf("then %v", again)
				}
			}
		})
	}
}

type readerOnly struct{ r io.Reader }

func (r readerOnly) Read(p []byte) (int, error) { return r.r.Read(p) }

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x0e{\"done\":true}"))
	f.Add([]byte("\x00\x00\x00\x22{\"error\":{\"code\":\"x\",\"detail\":\"y\"}}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var reply Reply
		ReadMessage(bytes.NewReader(in), MaxReply, &reply)
		var request Request
		ReadMessage(bytes.NewReader(in), MaxRequest, &request)
	})
}

func FuzzHello(f *testing.F) {
	h := Hello{Version: 1, Oldest: 1, Nonce: "N", Number: 1}
	f.Add(append(frame(fromHost, h), frame(begin, h)...))
	f.Add([]byte(magic + magic + ">\x00\x02{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		// Whatever came before, a whole hello and its begin are found, if what
		// came can't swallow them.
		r := bufio.NewReader(io.MultiReader(bytes.NewReader(in), bytes.NewReader(make([]byte, maxHello+2)),
			bytes.NewReader(frame(fromHost, h)), bytes.NewReader(frame(begin, h))))
		if _, err := Answer(r, io.Discard); err != nil {
			t.Error(err)
		}
		scan(bufio.NewReader(bytes.NewReader(in)), string(fromGuest), maxGarbage)
	})
}

func FuzzGuard(f *testing.F) {
	f.Add(muxFrame(0, 0, 0, 1, 3), 1)
	f.Add(append(muxFrame(0, 0, 0, 1, 3), "abcXXXXXXXXXXXXXX"...), 5)
	f.Fuzz(func(t *testing.T, in []byte, split int) {
		// Where reads are cut makes no difference.
		whole, parts := &guarded{}, &guarded{}
		err1 := whole.check(in)
		split = max(0, min(split, len(in)))
		err2 := parts.check(in[:split])
		if err2 == nil {
			err2 = parts.check(in[split:])
		}
		if (err1 == nil) != (err2 == nil) {
			t.Errorf("whole %v, in parts %v", err1, err2)
		}
	})
}
