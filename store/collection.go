package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/cleave-project/cleave/api"
)

// Object is a pointer to a resource type.
type Object[T any] interface {
	*T
	api.Object
}

// Collection is every object of one type.
type Collection[T any, P Object[T]] struct {
	s    *Store
	kind string // as in keys and messages: instance, network, ...

	mu      sync.RWMutex
	byID    map[string]P
	byName  map[string]string // project/name -> id
	deleted map[string]int64  // id -> revision, until the watch has passed it
	notify  []func(old, now P)

	cancel context.CancelFunc
	done   chan struct{}
}

// OpenCollection loads the objects of a kind and follows its changes until Close.
func OpenCollection[T any, P Object[T]](ctx context.Context, s *Store, kind string) (*Collection[T, P], error) {
	c := &Collection[T, P]{
		s: s, kind: kind,
		byID: map[string]P{}, byName: map[string]string{}, deleted: map[string]int64{},
		done: make(chan struct{}),
	}
	r, err := s.client.Get(ctx, c.key(""), clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("loading %ss: %w", kind, err)
	}
	for _, kv := range r.Kvs {
		o, err := c.decode(kv.Value, kv.ModRevision)
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", kv.Key, err)
		}
		c.byID[o.GetMeta().ID] = o
		c.byName[nameOf(o)] = o.GetMeta().ID
	}
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(context.Background()))
	c.cancel = cancel
	w := s.client.Watch(wctx, c.key(""), clientv3.WithPrefix(), clientv3.WithRev(r.Header.Revision+1))
	go c.follow(w)
	return c, nil
}

// Close ends the watch.
func (c *Collection[T, P]) Close() {
	c.cancel()
	<-c.done
}

// OnChange calls f after every change, in order per object, with the lock
// released: old is nil for a new object, now for a deleted one. f must not
// block. It must be called before the first write.
func (c *Collection[T, P]) OnChange(f func(old, now P)) { c.notify = append(c.notify, f) }

// Get finds an object by name.
func (c *Collection[T, P]) Get(project, name string) (P, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	o, ok := c.byID[c.byName[project+"/"+name]]
	if !ok {
		return nil, c.notFound(name)
	}
	return o, nil
}

// ByID finds an object by its id; nil if there is none.
func (c *Collection[T, P]) ByID(id string) P {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byID[id]
}

// All is a snapshot of the collection, sorted by project and name.
func (c *Collection[T, P]) All() []P {
	c.mu.RLock()
	all := slices.Collect(maps.Values(c.byID))
	c.mu.RUnlock()
	slices.SortFunc(all, func(a, b P) int {
		x, y := a.GetMeta(), b.GetMeta()
		return cmp.Or(strings.Compare(x.Project, y.Project), strings.Compare(x.Name, y.Name), strings.Compare(x.ID, y.ID))
	})
	return all
}

// Len counts the objects.
func (c *Collection[T, P]) Len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.byID)
}

// Create is the change that adds o, whose meta is complete but for the
// revision. It fails with exists when the name is taken.
func (c *Collection[T, P]) Create(o P) Op {
	m := o.GetMeta()
	name := c.nameKey(o)
	return Op{
		guards: []clientv3.Cmp{
			clientv3.Compare(clientv3.CreateRevision(c.key(m.ID)), "=", 0),
			clientv3.Compare(clientv3.CreateRevision(name), "=", 0),
		},
		writes: []clientv3.Op{clientv3.OpPut(c.key(m.ID), c.encode(o)), clientv3.OpPut(name, m.ID)},
		grows:  true,
		what:   c.describe(m.Name), taken: c.describe(m.Name), absent: name,
		apply: func(rev int64) { m.Revision = rev; c.set(o, rev) },
	}
}

// Put is the change that replaces the object of o's id, if it still has o's
// revision. A changed name moves it, and fails with exists when that is taken.
func (c *Collection[T, P]) Put(o P) Op {
	m := o.GetMeta()
	op := Op{
		guards: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(c.key(m.ID)), "=", m.Revision)},
		writes: []clientv3.Op{clientv3.OpPut(c.key(m.ID), c.encode(o))},
		what:   c.describe(m.Name),
		apply:  func(rev int64) { m.Revision = rev; c.set(o, rev) },
	}
	if old := c.ByID(m.ID); old != nil && nameOf(old) != nameOf(o) {
		name := c.nameKey(o)
		op.guards = append(op.guards, clientv3.Compare(clientv3.CreateRevision(name), "=", 0))
		op.writes = append(op.writes, clientv3.OpPut(name, m.ID), clientv3.OpDelete(c.nameKey(old)))
		op.taken, op.absent = c.describe(m.Name), name
	}
	return op
}

// Delete is the change that removes o, if it still has o's revision.
func (c *Collection[T, P]) Delete(o P) Op {
	m := o.GetMeta()
	return Op{
		guards: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(c.key(m.ID)), "=", m.Revision)},
		writes: []clientv3.Op{clientv3.OpDelete(c.key(m.ID)), clientv3.OpDelete(c.nameKey(o))},
		what:   c.describe(m.Name),
		apply:  func(rev int64) { c.drop(m.ID, rev, true) },
	}
}

// Update changes the object of an id by f, which works on a copy and may be
// called again when a race was lost. An error of f ends it. With makes
// further changes in the same commit, which are seen before the object's.
func (c *Collection[T, P]) Update(ctx context.Context, id string, f func(P) error, with ...func(P) []Op) (P, error) {
	var o P
	err := retry(ctx, func() error {
		old := c.ByID(id)
		if old == nil {
			return c.notFound(id)
		}
		o = c.clone(old)
		if err := f(o); err != nil {
			return &finalError{err}
		}
		var ops []Op
		for _, w := range with {
			ops = append(ops, w(o)...)
		}
		return c.s.Commit(ctx, append(ops, c.Put(o))...)
	})
	if fe, ok := err.(*finalError); ok {
		err = fe.error
	}
	return o, err
}

// finalError carries an error of Update's function past retry.
type finalError struct{ error }

func (e *finalError) Is(target error) bool { return target == errFinal }
func (e *finalError) Unwrap() error        { return e.error }

func (c *Collection[T, P]) follow(w clientv3.WatchChan) {
	defer close(c.done)
	for r := range w {
		c.s.writing.Lock()
		c.s.writing.Unlock() //nolint:staticcheck // empty: it waits for commits under way, see writing
		for _, ev := range r.Events {
			id := strings.TrimPrefix(string(ev.Kv.Key), c.key(""))
			if ev.Type == clientv3.EventTypeDelete {
				c.drop(id, ev.Kv.ModRevision, false)
				continue
			}
			if o, err := c.decode(ev.Kv.Value, ev.Kv.ModRevision); err == nil {
				c.set(o, ev.Kv.ModRevision)
			} else {
				c.s.log.Error("a record can't be read", "key", string(ev.Kv.Key), "error", err)
			}
		}
	}
}

// set and drop are reached twice for our own changes, from Commit and from
// the watch, and take effect once.
func (c *Collection[T, P]) set(o P, rev int64) {
	id := o.GetMeta().ID
	c.mu.Lock()
	old := c.byID[id]
	if c.deleted[id] >= rev || (old != nil && old.GetMeta().Revision >= rev) {
		c.mu.Unlock()
		return
	}
	if old != nil {
		delete(c.byName, nameOf(old))
	}
	c.byID[id] = o
	c.byName[nameOf(o)] = id
	c.mu.Unlock()
	c.tell(old, o)
}

func (c *Collection[T, P]) drop(id string, rev int64, local bool) {
	c.mu.Lock()
	old := c.byID[id]
	if local && old != nil {
		c.deleted[id] = rev // until the watch, which may still bring older puts, is past
	} else if !local && c.deleted[id] <= rev {
		delete(c.deleted, id)
	}
	if old == nil || old.GetMeta().Revision >= rev {
		c.mu.Unlock()
		return
	}
	delete(c.byID, id)
	if c.byName[nameOf(old)] == id {
		delete(c.byName, nameOf(old))
	}
	c.mu.Unlock()
	c.tell(old, nil)
}

func (c *Collection[T, P]) tell(old, now P) {
	for _, f := range c.notify {
		f(old, now)
	}
}

func (c *Collection[T, P]) key(id string) string { return prefix + c.kind + "/" + id }

func (c *Collection[T, P]) nameKey(o P) string { return prefix + "names/" + c.kind + "/" + nameOf(o) }

func nameOf(o api.Object) string { return o.GetMeta().Project + "/" + o.GetMeta().Name }

func (c *Collection[T, P]) describe(name string) string { return fmt.Sprintf("%s %q", c.kind, name) }

func (c *Collection[T, P]) notFound(name string) error {
	return api.Errorf(api.CodeNotFound, "%s not found", c.describe(name)).WithHint("`cleave %s` shows what there is", listCommand(c.kind))
}

func listCommand(kind string) string {
	if kind == "instance" {
		return "list"
	}
	return kind + " list"
}

func (c *Collection[T, P]) encode(o P) string {
	b, err := json.Marshal(o)
	if err != nil {
		// The types are our own and marshal; anything else is a bug.
		panic(fmt.Sprintf("store: %s: %v", c.kind, err))
	}
	return string(b)
}

func (c *Collection[T, P]) decode(b []byte, rev int64) (P, error) {
	o := P(new(T))
	if err := json.Unmarshal(b, o); err != nil {
		return nil, err
	}
	o.GetMeta().Revision = rev
	return o, nil
}

// clone copies deeply.
func (c *Collection[T, P]) clone(o P) P {
	n, err := c.decode([]byte(c.encode(o)), o.GetMeta().Revision)
	if err != nil {
		panic(fmt.Sprintf("store: %s: %v", c.kind, err))
	}
	return n
}

// Clone copies o deeply, for callers that want to change what they show.
func (c *Collection[T, P]) Clone(o P) P { return c.clone(o) }

// Now is the time that records carry: UTC in whole milliseconds, which JSON
// gives back unchanged.
func Now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
