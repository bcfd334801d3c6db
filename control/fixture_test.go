package control

import (
	"archive/tar"
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/image"
	"github.com/cleave-project/cleave/network"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/store"
)

// fakeNet hands out addresses and remembers what is attached.
type fakeNet struct {
	failEnsure int // so many times
	mu         sync.Mutex
	attached   map[string]network.Port
	forwards   map[string][]network.Forward
	names      map[string]bool
	failPort   error
	swept      []network.Port
}

func (f *fakeNet) Ensure(context.Context, *api.Network) (api.NetworkStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failEnsure > 0 {
		f.failEnsure--
		return api.NetworkStatus{}, api.Errorf(api.CodeConflict, "its addresses are taken")
	}
	return api.NetworkStatus{State: "ready", Bridge: "fake0", IPv4: "10.9.0.1/24"}, nil
}
func (f *fakeNet) Remove(context.Context, string) error { return nil }

func (f *fakeNet) Attach(_ context.Context, p network.Port, _ int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[p.Link] = p
	return nil
}

func (f *fakeNet) OpenTap(_ context.Context, p network.Port) (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[p.Link] = p
	return os.Open(os.DevNull)
}

func (f *fakeNet) Detach(_ context.Context, p network.Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.attached, p.Link)
	return nil
}
func (f *fakeNet) SetRates(context.Context, network.Port) error { return nil }

func (f *fakeNet) SetForwards(_ context.Context, id string, list []network.Forward) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(list) > 0 && f.failPort != nil {
		return f.failPort
	}
	f.forwards[id] = list
	if len(list) == 0 {
		delete(f.forwards, id)
	}
	return nil
}

func (f *fakeNet) SetName(_, name string, _ ...netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names[name] = true
}

func (f *fakeNet) DeleteName(_, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.names, name)
}

func (f *fakeNet) Allocate(_ *api.Network, used func(netip.Addr) bool, fixed, _ string) (v4, v6 netip.Prefix, err error) {
	for a := netip.MustParseAddr("10.9.0.2"); ; a = a.Next() {
		if !used(a) {
			return netip.PrefixFrom(a, 24), netip.Prefix{}, nil
		}
	}
}

func (f *fakeNet) Gateway(*api.Network) (v4, v6 netip.Addr) {
	return netip.MustParseAddr("10.9.0.1"), netip.Addr{}
}
func (f *fakeNet) Counters([]string) (map[string]network.Counters, error) { return nil, nil }

func (f *fakeNet) Sweep(_ context.Context, keep []network.Port, _ map[string][]network.Forward) error {
	f.swept = keep
	return nil
}
func (f *fakeNet) Probe(context.Context) []api.Finding { return nil }

// fakePool keeps the names of volumes.
type fakePool struct {
	dir        string
	mu         sync.Mutex
	volumes    map[string]api.Bytes
	failCreate error
	failResize error
	total      api.Bytes
}

func (f *fakePool) Create(_ context.Context, id string, size api.Bytes) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failCreate != nil {
		return f.failCreate
	}
	f.volumes[id] = size
	return nil
}

func (f *fakePool) Delete(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.volumes, id)
	return os.RemoveAll(filepath.Join(f.dir, id))
}

func (f *fakePool) Resize(_ context.Context, id string, size api.Bytes) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failResize != nil {
		return f.failResize
	}
	f.volumes[id] = size
	return nil
}

func (f *fakePool) Usage(_ context.Context, id string) (used, size api.Bytes, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return 0, f.volumes[id], nil
}

// Path makes the directory of a volume when it is first asked for.
func (f *fakePool) Path(_ context.Context, id string) (string, error) {
	dir := filepath.Join(f.dir, id)
	return dir, os.MkdirAll(dir, 0o755)
}
func (f *fakePool) Release(context.Context, string) error { return nil }

func (f *fakePool) List(context.Context) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var l []string
	for id := range f.volumes {
		l = append(l, id)
	}
	return l, nil
}

func (f *fakePool) Status(context.Context) (api.PoolStatus, error) {
	return api.PoolStatus{State: "ready", Total: f.total}, nil
}
func (f *fakePool) Close() error                  { return nil }
func (f *fakePool) Unmount(context.Context) error { return nil }
func (f *fakePool) Destroy(context.Context) error { return nil }

// world is a controller over fakes, with a real store and real images. It
// can be crashed and started again.
type world struct {
	t    *testing.T
	dir  string
	eng  *fakeEngine
	more []engine.Engine // of other kinds
	net  *fakeNet
	pool *fakePool
	c    *Controller
	st   *store.Store
	img  *image.Store
}

func newWorld(t *testing.T, more ...engine.Engine) *world {
	t.Helper()
	w := &world{
		t: t, dir: t.TempDir(), eng: newFake(), more: more,
		net:  &fakeNet{attached: map[string]network.Port{}, forwards: map[string][]network.Forward{}, names: map[string]bool{}},
		pool: &fakePool{volumes: map[string]api.Bytes{}, dir: t.TempDir()},
	}
	var err error
	log := slog.New(slog.DiscardHandler)
	if w.st, err = store.Open(t.Context(), store.Options{Dir: filepath.Join(w.dir, "state"), Log: log}); err != nil {
		t.Fatal(err)
	}
	if w.img, err = image.Open(image.Options{Dir: filepath.Join(w.dir, "images"), Log: log}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.img.Import(t.Context(), rootTar(t), "tiny", "", func(string, int64, int64) {}); err != nil {
		t.Fatal(err)
	}
	w.start()
	t.Cleanup(func() {
		w.c.Close()
		w.img.Close()
		w.st.Close()
	})
	return w
}

// rootTar is the smallest image.
func rootTar(t *testing.T) *bytes.Buffer {
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	if err := w.WriteHeader(&tar.Header{Name: "bin", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) start() {
	w.t.Helper()
	c, err := New(w.t.Context(), Options{
		Data: w.dir, Run: w.dir, UIDBase: 1 << 30, Store: w.st, Images: w.img, Network: w.net,
		Drivers: map[string]StorageDriver{"btrfs": {
			Open:  func(context.Context, storage.Config) (storage.Driver, error) { return w.pool, nil },
			Probe: func(context.Context, string) []api.Finding { return nil },
		}},
		ForgetImage: func(string) {}, Engines: append([]engine.Engine{w.eng}, w.more...), Kernels: bootKernels{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.c = c
}

// restart is a daemon that ends and another that takes over.
func (w *world) restart() {
	w.t.Helper()
	w.c.Close()
	w.start()
}

func spec(change ...func(*api.InstanceSpec)) api.InstanceSpec {
	s := api.InstanceSpec{Image: "tiny", Command: []string{"/bin/true"}}
	for _, f := range change {
		f(&s)
	}
	return s
}

// patience ends a test that hangs; it says nothing of how fast a machine is.
const patience = 2 * time.Minute

// finish waits for an operation's end.
func (w *world) finish(op *api.Operation, err error) *api.Operation {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for !op.Finished() {
		if op, err = w.c.WaitOperation(ctx, op.ID, op.Changes); err != nil {
			w.t.Fatal(err)
		}
		if ctx.Err() != nil {
			w.t.Fatalf("operation %s %s does not end: %+v", op.Verb, op.Target, op)
		}
	}
	return op
}

func (w *world) launch(name string, s api.InstanceSpec) *api.Instance {
	w.t.Helper()
	op := w.finish(w.c.CreateInstance(w.t.Context(), &api.Instance{Meta: api.Meta{Name: name}, Spec: s}, true))
	if op.State != api.OperationDone {
		w.t.Fatalf("launch: %v", op.Error)
	}
	in, err := w.c.Instance("", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return in
}

// until waits for an instance to be as wanted, by the events that tell of it.
func (w *world) until(id, what string, ok func(*api.Instance) bool) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	changed := make(chan struct{}, 1)
	go func() {
		_ = w.c.Events(ctx, Since{ID: 0, Time: time.Unix(1, 0), Follow: true}, func(api.Event) error {
			select {
			case changed <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	tick := time.NewTicker(20 * time.Millisecond) // the event comes just after or before the record
	defer tick.Stop()
	for !ok(w.c.instances.ByID(id)) {
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			w.t.Fatalf("never %s: %+v", what, w.c.instances.ByID(id))
		}
	}
}

// clean fails if anything but the named instances is left.
func (w *world) clean(keep ...string) {
	w.t.Helper()
	w.eng.mu.Lock()
	defer w.eng.mu.Unlock()
	w.pool.mu.Lock()
	defer w.pool.mu.Unlock()
	for id := range w.eng.guests {
		if !slices.Contains(keep, id) {
			w.t.Errorf("guest %s is left", id)
		}
	}
	for v := range w.pool.volumes {
		if !slices.ContainsFunc(keep, func(id string) bool { return v == "i-"+id }) {
			w.t.Errorf("volume %s is left", v)
		}
	}
	if n := w.c.instances.Len(); n != len(keep) {
		w.t.Errorf("%d records, want %d", n, len(keep))
	}
}
