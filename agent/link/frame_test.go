package link

import (
	"bufio"
	"bytes"
	"io"
	"testing"
)

func bufioReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, maxStuffed+1) }

func TestFramesOfAnySizeAreStuffedAndBack(t *testing.T) {
	var enc encoder
	for _, fill := range []byte{0, 1, 255} {
		for _, n := range []int{0, 1, 2, 231, 232, 233, 234, 235, 252, 253, 254, 255, 256, 507, 508, 509, maxPayload} {
			want := frame{kind: data, session: 1 << 40, sequence: 9, conn: 3, payload: bytes.Repeat([]byte{fill}, n)}
			b := enc.append(nil, want)
			if i := bytes.IndexByte(b, delimiter); i != len(b)-1 || i > maxStuffed {
				t.Fatalf("%d of %d: its end is at %d of %d", n, fill, i, len(b))
			}
			got, ok := parse(b[:len(b)-1])
			if !ok || got.kind != want.kind || got.session != want.session || got.conn != want.conn || got.sequence != want.sequence || !bytes.Equal(got.payload, want.payload) {
				t.Fatalf("%d of %d: got %+v, %v", n, fill, got, ok)
			}
		}
	}
}

func FuzzStuff(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 600))
	f.Add([]byte{0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := stuff(nil, b)
		if bytes.IndexByte(s, delimiter) >= 0 {
			t.Fatal("a delimiter is left")
		}
		if got, ok := unstuff(s); !ok || !bytes.Equal(got, b) {
			t.Fatalf("%x became %x", b, got)
		}
		unstuff(bytes.Clone(b))
	})
}

// FuzzGuest feeds the host what a hostile guest might send once there is a
// session. Check sums and numbers are made right where they are by chance
// nearly so, or nothing would come far.
func FuzzGuest(f *testing.F) {
	var seed []byte
	for _, k := range []kind{data, ack, data, finish, reset, accept, open, connect} {
		seed = append(seed, byte(k), 1, 8, 0, 0, 0, 0, 0, 0, 0, 1)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSession(newEndpoint(nil, 0), 1)
		s.take(frame{kind: accept, session: 1, payload: []byte{1}})
		c, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for sequence := uint32(0); len(b) >= 3; sequence++ {
			n := min(int(b[2])&0x7f, len(b)-3)
			f := frame{kind: kind(b[0]), session: 1, sequence: sequence, conn: uint32(b[1] & 1), payload: b[3 : 3+n]}
			if b[2]&0x80 != 0 {
				f.payload = make([]byte, maxPayload)
			}
			if b[1]&0x80 != 0 {
				f.session++
			}
			if f.kind < connect {
				sequence--
			}
			s.take(f)
			b = b[3+n:]
		}
		if in := c.(*conn).in; len(in) > window || len(s.e.conns) > 1 || len(s.e.out) > 1<<20 {
			t.Fatalf("%d bytes, %d connections, %d to be sent", len(in), len(s.e.conns), len(s.e.out))
		}
	})
}

func FuzzScan(f *testing.F) {
	var enc encoder
	f.Add(enc.append([]byte("garbage\x00\x00"), frame{kind: data, session: 1, payload: []byte("text")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := scanner{bufioReader(bytes.NewReader(b))}
		for {
			if _, _, err := s.next(); err != nil {
				return
			}
		}
	})
}

func BenchmarkLink(b *testing.B) {
	line := newLine(b)
	l := Listen(line.guest())
	b.Cleanup(func() { l.Close() })
	c := mustDial(b, line.host())
	g := mustAccept(b, l)
	buf := make([]byte, 64<<10)
	for i := range buf {
		buf[i] = byte(i * i)
	}
	b.SetBytes(int64(len(buf)))
	go func() {
		for b.Loop() {
			c.Write(buf)
		}
		c.Close()
	}()
	if _, err := io.Copy(io.Discard, g); err != nil {
		b.Fatal(err)
	}
}
