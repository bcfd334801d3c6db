package migrate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fake is a machine of bytes: a guest, and a place for one. While it runs, a
// program writes to its volumes.
type fake struct {
	volumes []*disk
	mu      sync.Mutex
	running bool
	frozen  bool
	state   []byte
	ran     atomic.Bool
	loadErr error
	runErr  error

	memory *late       // at a destination
	ahead  func(*late) // what the guest does there

	noDisk    bool // leave the disk alone
	throttled atomic.Int32
	stop      chan struct{}
	done      chan struct{}
}

// disk is a volume and a sink.
type disk struct {
	name  string
	blank bool
	mu    sync.Mutex
	b     []byte
	dirty map[int64]bool
	// flushed is what stays when the host falls.
	flushed []byte
}

func (d *disk) Name() string { return d.name }
func (d *disk) Size() int64  { return int64(len(d.b)) }
func (d *disk) Blank() bool  { return d.blank }
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.b[off:]), nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirty != nil {
		for at := off &^ (unit - 1); at < off+int64(len(p)); at += unit {
			d.dirty[at] = true
		}
	}
	return copy(d.b[off:], p), nil
}

func (d *disk) Zero(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.b[off : off+n])
	return nil
}

func (d *disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushed = bytes.Clone(d.b)
	return nil
}

func (d *disk) Begin() ([]Range, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = map[int64]bool{}
	var out []Range
	for at := int64(0); at < d.Size(); at += unit {
		if !isZero(d.b[at : at+unit]) {
			out = append(out, Range{at, unit})
		}
	}
	return out, nil
}

func (d *disk) End() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty = nil
	return nil
}

func (d *disk) Written() (out []Range, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := range d.dirty {
		out = append(out, Range{at, min(unit, d.Size()-at)})
	}
	clear(d.dirty)
	return out, nil
}

const memorySize = 2 << 20

func newFake(fill bool) *fake {
	f := &fake{volumes: []*disk{{name: "memory", b: make([]byte, memorySize), blank: true}, {name: "disk", b: make([]byte, 1<<20)}}}
	for _, d := range f.volumes {
		if fill {
			for i := unit; i < len(d.b)/2; i += 3 * unit / 2 {
				d.b[i] = byte(i / unit)
			}
		} else if !d.blank {
			for i := range d.b {
				d.b[i] = 0xee // what a disk's place had before
			}
		}
	}
	return f
}

// run writes, every millisecond to some places, until it is frozen.
func (f *fake) run(pages int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running, f.stop, f.done = true, make(chan struct{}), make(chan struct{})
	f.ran.Store(true)
	go func(stop, done chan struct{}) {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := uint32(1); ; n++ {
			now := pages
			if f.throttled.Load() >= 50 {
				now = 1
			}
			for range now {
				d := f.volumes[mrand.IntN(len(f.volumes))]
				if f.noDisk {
					d = f.volumes[0]
				}
				b := []byte{byte(n), byte(n >> 8)}
				if n%3 == 0 {
					b = []byte{0, 0}
				}
				_, _ = d.WriteAt(b, mrand.Int64N(d.Size()/unit)*unit)
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}(f.stop, f.done)
}

func (f *fake) halt() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running {
		close(f.stop)
		<-f.done
		f.running = false
	}
}

func (f *fake) alive() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.running }

func (f *fake) Description() ([]byte, error) { return []byte(`{"Fake":true}`), nil }
func (f *fake) Volumes() (out []Volume) {
	for i, d := range f.volumes {
		if i == 0 {
			out = append(out, follower{d})
		} else {
			out = append(out, d)
		}
	}
	return out
}
func (f *fake) Throttle(p int) { f.throttled.Store(int32(p)) }
func (f *fake) Freeze() ([]byte, error) {
	f.halt()
	f.frozen = true
	return []byte("state"), nil
}
func (f *fake) Thaw() error { f.frozen = false; f.run(1); return nil }

func (f *fake) Prepare(_ []byte, v []Info) (out []Sink, err error) {
	if len(v) != len(f.volumes) {
		return nil, errors.New("no room for so many volumes")
	}
	f.memory = &late{disk: f.volumes[0], missing: map[int64]bool{}, wanted: map[int64]bool{}}
	f.memory.came.L = &f.memory.mu
	for i, d := range f.volumes {
		if i == 0 {
			out = append(out, f.memory)
		} else {
			out = append(out, d)
		}
	}
	return out, nil
}
func (f *fake) Load(s []byte) error { f.state = s; return f.loadErr }
func (f *fake) Run() error {
	if f.runErr == nil {
		f.ran.Store(true)
		if f.ahead != nil {
			f.done = make(chan struct{})
			go func() {
				defer close(f.done)
				f.ahead(f.memory)
			}()
		}
	}
	return f.runErr
}

func same(t *testing.T, a, b *fake) {
	t.Helper()
	for i := range a.volumes {
		if !bytes.Equal(a.volumes[i].b, b.volumes[i].flushed) {
			t.Errorf("volume %d differs, or might after a power cut", i)
		}
	}
	if string(b.state) != "state" {
		t.Errorf("its state is %q", b.state)
	}
}

// listen is a unix socket's listener, and a function to connect to it.
func listen(t *testing.T) (Listener, func() net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	return l.(Listener), func() net.Conn {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

// move migrates from one fake to another, over connections, which connect
// makes.
func move(t *testing.T, from, to *fake, l Listener, conns []net.Conn, o Options, id *Identity) (r Report, sent, received error) {
	t.Helper()
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	go func() { done <- Receive(ctx, l, to, id) }()
	r, sent = Send(ctx, conns, from, o)
	if sent != nil && !to.ran.Load() {
		l.Close() // for a destination that waits for more
	}
	return r, sent, <-done
}

func TestAGuestMovesWhileItWrites(t *testing.T) {
	for _, streams := range []int{1, 3} {
		t.Run(fmt.Sprint(streams), func(t *testing.T) {
			from, to := newFake(true), newFake(false)
			from.run(4)
			l, dial := listen(t)
			var conns []net.Conn
			for range streams {
				conns = append(conns, dial())
			}
			r, sent, received := move(t, from, to, l, conns, Options{}, nil)
			if sent != nil || received != nil {
				t.Fatal(sent, received)
			}
			if from.alive() || !to.ran.Load() || !from.frozen {
				t.Error("it isn't alive on just the one side")
			}
			same(t, from, to)
			if r.Round < 1 || r.Sent < 1 || r.Downtime <= 0 || r.Total < r.Downtime {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestALinkThatBreaksLeavesOneGuest cuts connections behind any number of bytes
// of either direction.
func TestALinkThatBreaksLeavesOneGuest(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := mrand.New(mrand.NewPCG(seed, 0))
	outcomes := map[string]int{}
	for i := range 60 {
		from, to := newFake(true), newFake(false)
		from.run(2)
		l, dial := listen(t)
		streams, after := 1+i%3, int64(random.IntN(3<<20))
		if i%4 == 0 { // the few bytes of the destination's words
			after = -int64(random.IntN(5*headSize) + 1)
		}
		var conns []net.Conn
		b := &budget{}
		b.left.Store(max(after, -after))
		for range streams {
			conns = append(conns, &cut{Conn: dial(), budget: b, reads: after < 0})
		}
		_, sent, received := move(t, from, to, l, conns, Options{Downtime: time.Millisecond}, nil)
		here, there := from.alive(), to.ran.Load()
		what := "stays"
		switch {
		case here && there:
			t.Fatalf("cut %d at %d: the guest runs on both sides (%v, %v)", i, after, sent, received)
		case sent == nil && (here || !there):
			t.Fatalf("cut %d at %d: it has moved, and hasn't (%v)", i, after, received)
		case errors.Is(sent, ErrUndecided):
			what = "undecided at the source"
			if here {
				t.Fatal("an undecided guest runs at the source")
			}
			if there {
				what += ", runs at the destination"
			}
		case sent != nil && !here:
			t.Fatalf("cut %d at %d: the source has lost its guest: %v", i, after, sent)
		case sent == nil:
			what = "moves"
		}
		if errors.Is(received, ErrUndecided) {
			what += ", undecided at the destination"
			if there {
				t.Fatal("an undecided guest runs at the destination")
			}
		}
		if there {
			same(t, from, to)
		}
		outcomes[what]++
		from.halt()
	}
	t.Log(outcomes)
	if len(outcomes) < 2 {
		t.Error("no cut made a difference")
	}
}

// budget is how many bytes connections carry before all of them end.
type budget struct{ left atomic.Int64 }

// cut counts what is written, or else read.
type cut struct {
	net.Conn
	*budget
	reads bool
}

func (c *cut) Write(p []byte) (int, error) {
	if !c.reads && c.left.Add(-int64(len(p))) < 0 {
		n := max(c.left.Load()+int64(len(p)), 0)
		_, _ = c.Conn.Write(p[:n])
		c.Close()
		return int(n), errors.New("the link is cut")
	}
	return c.Conn.Write(p)
}

func (c *cut) Read(p []byte) (int, error) {
	if c.reads {
		p = p[:min(len(p), 1)]
		if c.left.Add(-1) < 0 {
			c.Close()
			return 0, errors.New("the link is cut")
		}
	}
	return c.Conn.Read(p)
}

func TestWhoGivesUpLeavesTheGuestWhereItWas(t *testing.T) {
	for name, spoil := range map[string]func(to *fake){
		"no room":         func(to *fake) { to.volumes = to.volumes[:1] },
		"another size":    func(to *fake) { to.volumes[1].b = to.volumes[1].b[:8192] },
		"it can't load":   func(to *fake) { to.loadErr = errors.New("a state that it doesn't like") },
		"it can't be run": func(to *fake) { to.runErr = errors.New("something is missing") },
	} {
		t.Run(name, func(t *testing.T) {
			from, to := newFake(true), newFake(false)
			from.run(1)
			defer from.halt()
			spoil(to)
			l, dial := listen(t)
			_, sent, received := move(t, from, to, l, []net.Conn{dial(), dial()}, Options{}, nil)
			if sent == nil || received == nil || errors.Is(sent, ErrUndecided) || errors.Is(received, ErrUndecided) {
				t.Errorf("%v, %v", sent, received)
			}
			if !errors.Is(sent, errAborted) {
				t.Errorf("the source isn't told why: %v", sent)
			}
			if !from.alive() || to.ran.Load() {
				t.Error("it isn't where it was")
			}
		})
	}
}

func TestACancelledMigrationLeavesTheGuest(t *testing.T) {
	from, to := newFake(true), newFake(false)
	from.run(64)
	defer from.halt()
	l, dial := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Receive(t.Context(), l, to, nil) }()
	_, err := Send(ctx, []net.Conn{dial()}, from, Options{Downtime: 1, Progress: func(r Report) {
		if r.Round == 2 {
			cancel()
		}
	}})
	if err == nil || errors.Is(err, ErrUndecided) || !from.alive() {
		t.Errorf("%v", err)
	}
	if err := <-done; err == nil || to.ran.Load() {
		t.Errorf("destination: %v", err)
	}
}

func TestAGuestThatWritesTooFastIsSlowedOrStays(t *testing.T) {
	for _, throttle := range []bool{true, false} {
		from, to := newFake(true), newFake(false)
		from.run(400)
		l, dial := listen(t)
		slow := &slow{Conn: dial()}
		var most int
		_, sent, received := move(t, from, to, l, []net.Conn{slow}, Options{
			Downtime: 20 * time.Millisecond, Throttle: throttle, Progress: func(r Report) { most = max(most, r.Throttle) },
		}, nil)
		from.halt()
		if throttle && (sent != nil || received != nil || most == 0) {
			t.Errorf("throttled by %d: %v, %v", most, sent, received)
		}
		if !throttle && (sent == nil || to.ran.Load()) {
			t.Error("it moves although it writes faster than can be sent")
		}
		if from.throttled.Load() != 0 {
			t.Error("it stays throttled")
		}
	}
}

func TestAGuestThatWritesNowMoreAndNowLessIsNotFollowedForEver(t *testing.T) {
	p := progress{least: 100}
	for _, rest := range []int64{60, 30} {
		if p.note(rest); p.little != 0 {
			t.Errorf("%d left: %d rounds have gained little", rest, p.little)
		}
	}
	for i, rest := range []int64{80, 30, 80, 30} {
		if p.note(rest); p.little != i+1 {
			t.Errorf("%d left: %d rounds have gained little, not %d", rest, p.little, i+1)
		}
	}
}

// slow carries 20 MB a second.
type slow struct{ net.Conn }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(len(p)) * time.Second / 20e6)
	return s.Conn.Write(p)
}

// identities are two sides that know each other, and one that they don't.
func identities(t *testing.T) (source, destination, stranger *Identity) {
	t.Helper()
	authority := func() (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true,
			BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour),
		}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return c, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	ca, caKey, roots := authority()
	issue := func(name, peer string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) *Identity {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		c := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		private, _ := x509.MarshalPKCS8PrivateKey(key)
		return &Identity{
			Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			Key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), Roots: roots, Peer: peer,
		}
	}
	otherCA, otherKey, _ := authority()
	return issue("a", "b", ca, caKey), issue("b", "a", ca, caKey), issue("a", "b", otherCA, otherKey)
}

func TestOnlyWhoHasACertificateIsHeard(t *testing.T) {
	source, destination, stranger := identities(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	from, to := newFake(true), newFake(false)
	from.run(1)
	done := make(chan error, 1)
	go func() { done <- Receive(t.Context(), l.(Listener), to, destination) }()
	wrongName := *source
	wrongName.Peer = "c"
	backwards := *destination // whose name the destination doesn't expect
	backwards.Peer = "b"
	for name, id := range map[string]*Identity{"none": nil, "stranger": stranger, "another name": &wrongName, "not the source": &backwards} {
		if _, err := Send(t.Context(), []net.Conn{dial()}, from, Options{Identity: id}); err == nil || !from.alive() {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Send(t.Context(), []net.Conn{dial(), dial()}, from, Options{Identity: source}); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	same(t, from, to)
}

func TestHolesAreWhatRangesLeave(t *testing.T) {
	got := holes([]Range{{0, 10}, {20, 5}, {25, 5}}, 40)
	if want := []Range{{10, 10}, {30, 10}}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// FuzzStream has a destination read anything: it must end, and not run a
// guest that wasn't handed over.
func FuzzStream(f *testing.F) {
	frames := func(list ...[]byte) []byte { return bytes.Join(list, nil) }
	frame := func(h head, payload []byte) []byte {
		h.length = uint32(len(payload))
		return append(h.append(nil), payload...)
	}
	f.Add(frames(frame(head{kind: kindData, offset: 4096}, []byte("x")), frame(head{kind: kindZero, volume: 1, size: 512}, nil),
		frame(head{kind: kindSync}, nil), frame(head{kind: kindState}, []byte("s")), frame(head{kind: kindGo}, nil)))
	f.Add(frame(head{kind: kindState}, []byte("too early")))
	f.Add(frames(frame(head{kind: kindData, offset: 4096}, []byte("x")), frame(head{kind: kindSync}, nil), frame(head{kind: kindLater, size: 8192}, nil),
		frame(head{kind: kindSync, offset: 1}, nil), frame(head{kind: kindState}, []byte("s")), frame(head{kind: kindData}, make([]byte, 4096)),
		frame(head{kind: kindGo}, nil), frame(head{kind: kindZero, offset: 4096, size: 4096}, nil), frame(head{kind: kindSync}, nil)))
	f.Add(frame(head{kind: kindData, volume: 9, offset: 1 << 63}, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, d := net.Pipe()
		to := newFake(false)
		r := &receiver{streams: []*stream{newStream(d)}, place: to, again: func() ([]*stream, error) { return nil, errors.New("nobody comes back") }}
		go func() {
			go func() { _, _ = (&net.Buffers{b}).WriteTo(c); c.Close() }()
			buf := make([]byte, 4096)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
		h := &hello{Version: version, Session: "s", Streams: 1, Volumes: []Info{{Name: "memory", Size: memorySize, Later: true}, {Name: "disk", Size: 1 << 20}}}
		err := r.receive(t.Context(), h, func() bool { return true })
		r.close()
		if to.ran.Load() && (err != nil || !bytes.Contains(b, head1(kindGo)) || len(to.state) == 0) {
			t.Errorf("it runs: %v", err)
		}
	})
}

func head1(k kind) []byte { h := head{kind: k}; return h.append(nil)[:8] }

// hasty is a connection that ends a context when something was read from it.
type hasty struct {
	net.Conn
	cancel func()
}

func (h *hasty) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.cancel()
	time.Sleep(10 * time.Millisecond) // until all who wait for that have heard it
	return n, err
}

func TestAMigrationThatIsCancelledAtTheWelcomeLeavesTheGuest(t *testing.T) {
	from, to := newFake(true), newFake(false)
	from.run(1)
	defer from.halt()
	l, dial := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Receive(t.Context(), l, to, nil) }()
	if _, err := Send(ctx, []net.Conn{&hasty{dial(), cancel}}, from, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := <-done; err == nil || to.ran.Load() || !from.alive() {
		t.Errorf("destination: %v", err)
	}
}
