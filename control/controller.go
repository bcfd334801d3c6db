package control

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/image"
	"github.com/cleave-project/cleave/network"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/store"
)

// Options are the parts that a Controller drives. It closes none of them.
type Options struct {
	Data, Run string
	Scope     string // sets several daemons on one host apart; "" for the default one
	Version   string
	UIDBase   uint32 // first host id that may be given to guests
	Store     *store.Store
	Images    *image.Store
	Network   Network
	Drivers   map[string]StorageDriver // by the name that a pool's spec says
	Engines   []engine.Engine
	Kernels   Kernels
	// AgentFor finds the static agent of an architecture, for systems of
	// their own to install.
	AgentFor func(arch string) (path string, err error)
	// ForgetImage has the engines let go of an image that was deleted.
	ForgetImage func(digest string)
	Log         *slog.Logger
}

// StorageDriver is one way to keep volumes.
type StorageDriver struct {
	Open  func(context.Context, storage.Config) (storage.Driver, error)
	Probe func(ctx context.Context, dir string) []api.Finding
}

// Network is what the controller needs of *network.Manager, which documents
// the methods.
type Network interface {
	Ensure(ctx context.Context, n *api.Network) (api.NetworkStatus, error)
	Remove(ctx context.Context, id string) error
	Attach(ctx context.Context, p network.Port, pid int) error
	OpenTap(ctx context.Context, p network.Port) (*os.File, error)
	Detach(ctx context.Context, p network.Port) error
	SetRates(ctx context.Context, p network.Port) error
	SetForwards(ctx context.Context, instance string, f []network.Forward) error
	SetName(network, name string, addrs ...netip.Addr)
	DeleteName(network, name string)
	Allocate(n *api.Network, used func(netip.Addr) bool, fixed4, fixed6 string) (v4, v6 netip.Prefix, err error)
	Gateway(n *api.Network) (v4, v6 netip.Addr)
	Counters(links []string) (map[string]network.Counters, error)
	Sweep(ctx context.Context, keep []network.Port, forwards map[string][]network.Forward) error
	Probe(ctx context.Context) []api.Finding
}

// Controller makes desired state live.
type Controller struct {
	Options
	store   *store.Store
	images  *image.Store
	net     Network
	walls   map[api.Kind]*wall
	log     *slog.Logger
	host    string
	started time.Time

	instances *store.Collection[api.Instance, *api.Instance]
	pools     *store.Collection[api.Pool, *api.Pool]
	volumes   *store.Collection[api.Volume, *api.Volume]
	networks  *store.Collection[api.Network, *api.Network]
	tokens    *store.Collection[api.Token, *api.Token]
	ops       *operations
	events    *eventLog

	ctx    context.Context // ends with the daemon
	cancel context.CancelFunc
	wg     sync.WaitGroup

	alloc    allocator
	workers  workers
	exports  exports
	imageUse sync.RWMutex // held for reading while an image is being tied to an instance

	mu       sync.Mutex
	drivers  map[string]storage.Driver // by pool name
	poolErr  map[string]error          // why a pool could not be opened
	guests   map[string]*guest         // by instance id: those with processes
	waiting  map[string][]waiter
	restarts map[string]*backoff
	tokenUse map[string]time.Time
}

// New loads the records. Start makes them live.
func New(ctx context.Context, o Options) (*Controller, error) {
	c := &Controller{
		Options: o, store: o.Store, images: o.Images, net: o.Network, log: o.Log,
		walls: map[api.Kind]*wall{}, started: time.Now(),
		drivers: map[string]storage.Driver{}, poolErr: map[string]error{},
		guests: map[string]*guest{}, waiting: map[string][]waiter{},
		restarts: map[string]*backoff{}, tokenUse: map[string]time.Time{},
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.workers.ctx, c.workers.halt = context.WithCancel(c.ctx)
	c.host, _ = os.Hostname()
	for _, e := range o.Engines {
		c.walls[e.Kind()] = &wall{Engine: e}
	}
	var err error
	if c.instances, err = store.OpenCollection[api.Instance](ctx, o.Store, "instance"); err != nil {
		return nil, err
	}
	if c.pools, err = store.OpenCollection[api.Pool](ctx, o.Store, "pool"); err != nil {
		return nil, err
	}
	if c.volumes, err = store.OpenCollection[api.Volume](ctx, o.Store, "volume"); err != nil {
		return nil, err
	}
	if c.networks, err = store.OpenCollection[api.Network](ctx, o.Store, "network"); err != nil {
		return nil, err
	}
	if c.tokens, err = store.OpenCollection[api.Token](ctx, o.Store, "token"); err != nil {
		return nil, err
	}
	if c.ops, err = openOperations(ctx, o.Store); err != nil {
		return nil, err
	}
	if c.events, err = openEvents(o.Data); err != nil {
		return nil, err
	}
	c.alloc.init(c)
	// Changes made by another writer of the store are acted upon too.
	c.instances.OnChange(func(_, now *api.Instance) {
		if now != nil {
			c.kick(now.ID)
		}
	})
	return c, nil
}

// Close ends all work where it stands; guests go on. The next Controller
// takes it up again.
func (c *Controller) Close() {
	c.cancel()
	c.workers.close()
	c.wg.Wait()
	c.instances.Close()
	c.pools.Close()
	c.volumes.Close()
	c.networks.Close()
	c.tokens.Close()
	c.ops.col.Close()
	c.events.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, d := range c.drivers {
		if err := d.Close(); err != nil {
			c.log.Warn("closing a pool", "pool", name, "error", err)
		}
	}
}

// commit writes records of work that is done: it must not be given up
// because a caller has gone.
func (c *Controller) commit(ops ...store.Op) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), 30*time.Second)
	defer cancel()
	return c.store.Commit(ctx, ops...)
}

func (c *Controller) emit(typ string, m *api.Meta, message string, data map[string]string) {
	c.events.emit(api.Event{Type: typ, Project: m.Project, Name: m.Name, Target: m.ID, Message: message, Data: data})
}

// Events yields events, see Since.
func (c *Controller) Events(ctx context.Context, since Since, yield func(api.Event) error) error {
	return c.events.read(ctx, since, yield)
}

// Info describes the daemon and its host.
func (c *Controller) Info() api.HostInfo {
	info := api.HostInfo{
		Version: c.Version, Host: c.host, Kernel: kernelRelease(), Started: c.started.UTC(),
		DataDir: c.Data, RunDir: c.Run, CPUs: runtime.NumCPU(), Memory: hostMemory(),
		Instances: c.instances.Len(),
	}
	for _, in := range c.instances.All() {
		if in.Status.Phase == api.PhaseRunning {
			info.Running++
		}
	}
	return info
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return strings.TrimRight(string(u.Release[:]), "\x00")
}

// hostMemory is the memory of the host in bytes.
func hostMemory() api.Bytes {
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return api.Bytes(si.Totalram) * api.Bytes(si.Unit)
}

// projectOf names the project of a request.
func projectOf(project string) (string, error) {
	if project == "" {
		return api.DefaultProject, nil
	}
	return project, api.ValidateName("project", project)
}

// checkRevision refuses a change to something that was changed since the
// caller read it; 0 is any revision.
func checkRevision(m *api.Meta, revision int64) error {
	if revision != 0 && m.Revision != revision {
		return api.Errorf(api.CodeConflict, "%s has revision %d, the change was made for %d", m.Name, m.Revision, revision).
			WithHint("read it again and repeat the change")
	}
	return nil
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func fmtList(list []string) string {
	if len(list) > 5 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:5], ", "), len(list)-5)
	}
	return strings.Join(list, ", ")
}
