// Package store keeps resources durably in an etcd that runs inside the
// daemon, as typed collections with compare-and-swap and watches.
//
// A Collection holds every object of one type, decoded, in memory; reads cost
// no round trip. Writes go to etcd first, atomically over any number of
// objects (Commit), and are visible to readers when Commit returns. Changes
// made elsewhere arrive through etcd's watch. Objects that a collection hands
// out are shared and must not be changed; Update works on a copy.
//
// Everything may be called from any goroutine. Errors are *api.Error with
// codes not-found, exists, conflict (the object changed meanwhile), no-space
// or unavailable.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"

	"github.com/cleave-project/cleave/api"
)

// prefix is the root of all keys. Objects are at prefix/KIND/ID and their
// names at prefix/names/KIND/PROJECT/NAME, which makes a name unique for all
// hosts that share the store and lets a rename keep the object's key.
const prefix = "/cleave/"

// Options configure Open.
type Options struct {
	Dir string // holds etcd's data and its unix socket
	Log *slog.Logger
}

// Store is an open etcd.
type Store struct {
	etcd    *embed.Etcd
	client  *clientv3.Client
	log     *slog.Logger
	reserve *reserve

	// writing is held for reading from a commit's write until its changes
	// are visible. A watch waits for it, so that nobody sees one half of a
	// commit of this process before the other.
	writing sync.RWMutex
}

// Open starts the embedded etcd, with no TCP port, and waits until it can
// take writes.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	res := &reserve{dir: o.Dir, log: o.Log}
	if _, err := os.Stat(res.path()); err == nil {
		res.held = true
	}
	if err := res.room(false); err != nil {
		return nil, err
	}
	cfg := config(o.Dir)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "state in %s can't be opened: %w", o.Dir, err).WithHint("see whether another cleaved uses it; else restore %s from a backup", o.Dir)
	}
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("state in %s: %w", o.Dir, err)
	case <-ctx.Done():
		e.Close()
		return nil, ctx.Err()
	}
	return &Store{reserve: res, etcd: e, client: v3client.New(e.Server), log: o.Log}, nil
}

// config is a single voter that listens nowhere but on a unix socket. The
// advertised URLs are only names: nobody dials them.
func config(dir string) *embed.Config {
	c := embed.NewConfig()
	c.Name = "cleave"
	c.Dir = filepath.Join(dir, "etcd")
	c.Logger = "zap"
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quietLogger())
	c.ListenPeerUrls = nil
	c.ListenClientUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(dir, "etcd.sock")}}
	placeholder := url.URL{Scheme: "http", Host: "localhost:1"}
	c.AdvertisePeerUrls = []url.URL{placeholder}
	c.AdvertiseClientUrls = []url.URL{placeholder}
	c.InitialCluster = c.Name + "=" + placeholder.String()
	// A single voter elects itself after 1 to ELECTION/TICK ticks at random,
	// and nothing can be written before: with etcd's own 100 and 1000 ms a
	// start waited for half a second, with these for 0.15 s.
	c.TickMs, c.ElectionMs = 50, 250
	// Entries since the last snapshot stay in memory: at the default of
	// 10,000 that came to 20 MB after a day of launches.
	c.SnapshotCount = 1000
	c.SnapshotCatchUpEntries = 100
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	c.AutoCompactionMode, c.AutoCompactionRetention = "revision", "1000"
	return c
}

// quietLogger passes on why etcd ends the process. Its errors are not worth
// passing on: every orderly close logs three, and failed calls return theirs.
func quietLogger() *zap.Logger {
	c := zap.NewProductionConfig()
	c.Level = zap.NewAtomicLevelAt(zap.DPanicLevel)
	c.DisableStacktrace = true
	l, err := c.Build()
	if err != nil {
		return zap.NewNop()
	}
	return l
}

// Close flushes and stops etcd.
func (s *Store) Close() error {
	err := s.client.Close()
	s.etcd.Close()
	if errors.Is(err, context.Canceled) { // what an in-process client's close says when all is well
		return nil
	}
	return err
}

// Healthy tells whether the state can be read and written.
func (s *Store) Healthy(ctx context.Context) error {
	if err := s.reserve.room(false); err != nil {
		return err
	}
	_, err := s.client.Get(ctx, prefix, clientv3.WithCountOnly())
	return err
}

// Stopped is closed when etcd has ended by itself.
func (s *Store) Stopped() <-chan struct{} { return s.etcd.Server.StopNotify() }

// Op is one change in a Commit. Collections make them.
type Op struct {
	guards []clientv3.Cmp
	writes []clientv3.Op
	grows  bool
	// what and taken explain a failed guard: which object, and whether
	// its name may be the reason.
	what   string
	taken  string
	absent string // name key that must not exist, when taken is set
	apply  func(revision int64)
}

// Always marks a change that makes the store grow but must be possible on a
// full disk too, since it is a step towards having less.
func (o Op) Always() Op {
	o.grows = false
	return o
}

// Commit makes all changes or none. When it fails with code exists or
// conflict nothing was written. Readers see the changes in the order of ops;
// the last is the one that a conflict's message names.
func (s *Store) Commit(ctx context.Context, ops ...Op) error {
	if err := s.reserve.room(slices.ContainsFunc(ops, func(op Op) bool { return op.grows })); err != nil {
		return err
	}
	var guards []clientv3.Cmp
	var writes []clientv3.Op
	for _, op := range ops {
		guards = append(guards, op.guards...)
		writes = append(writes, op.writes...)
	}
	s.writing.RLock()
	defer s.writing.RUnlock()
	r, err := s.client.Txn(ctx).If(guards...).Then(writes...).Commit()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return api.Errorf(api.CodeUnavailable, "state could not be written: %w", err)
	}
	if !r.Succeeded {
		return s.explain(ctx, ops)
	}
	for _, op := range ops {
		op.apply(r.Header.Revision)
	}
	return nil
}

// explain finds out which guard failed.
func (s *Store) explain(ctx context.Context, ops []Op) error {
	for _, op := range ops {
		if op.taken == "" {
			continue
		}
		if r, err := s.client.Get(ctx, op.absent, clientv3.WithCountOnly()); err == nil && r.Count > 0 {
			return api.Errorf(api.CodeExists, "%s already exists", op.taken).WithHint("choose another name, or delete that one first")
		}
	}
	return api.Errorf(api.CodeConflict, "%s was changed by someone else meanwhile", ops[len(ops)-1].what).WithHint("read it again and repeat the change")
}

// Put and Get of single values that are no resources, like counters.

// PutValue stores v as JSON under name.
func (s *Store) PutValue(ctx context.Context, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := s.reserve.room(false); err != nil {
		return err
	}
	_, err = s.client.Put(ctx, prefix+"values/"+name, string(b))
	return err
}

// GetValue reads what PutValue stored; ok is false when nothing was.
func (s *Store) GetValue(ctx context.Context, name string, v any) (ok bool, err error) {
	r, err := s.client.Get(ctx, prefix+"values/"+name)
	if err != nil || len(r.Kvs) == 0 {
		return false, err
	}
	return true, json.Unmarshal(r.Kvs[0].Value, v)
}

// retry repeats f while it loses races, up to a bound that only a livelock
// would reach.
func retry(ctx context.Context, f func() error) error {
	for i := range 20 {
		err := f()
		if !api.IsCode(err, api.CodeConflict) || errors.Is(err, errFinal) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(i) * time.Millisecond):
		}
	}
	return api.Errorf(api.CodeConflict, "gave up after 20 lost races for the same record")
}

// errFinal marks a conflict that repeating can't solve.
var errFinal = errors.New("final")
