package control

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/store"
)

// Operations are kept for a while after their end, so that a client that
// lost its connection can still ask.
const (
	operationsKept = 500 // ended ones
	pruneBatch     = 50  // etcd takes at most 128 changes in one commit
)

// opKey labels an operation with the caller's idempotency key, its prefix
// opParam with what the work needs to know.
const (
	opKey      = "idempotency-key"
	opForce    = "force"
	opTimeout  = "timeout"
	opSave     = "save"
	opTo       = "to"   // of a copy: its name
	opKind     = "kind" // of a copy, and its id:
	opCopy     = "copy"
	opFresh    = "fresh"
	opReplaces = "replaces" // the epoch of the guest at the time
	opObject   = "object"   // id of the object it works on
)

// operations is the live side of the operations in the store: their
// progress, which is not worth a write, who waits, and how to cancel.
type operations struct {
	col *store.Collection[api.Operation, *api.Operation]

	mu   sync.Mutex
	live map[string]*liveOp
	open map[string]map[string]*api.Operation // unfinished, by object and id
}

func openOperations(ctx context.Context, s *store.Store) (*operations, error) {
	col, err := store.OpenCollection[api.Operation](ctx, s, "operation")
	if err != nil {
		return nil, err
	}
	o := &operations{col: col, live: map[string]*liveOp{}, open: map[string]map[string]*api.Operation{}}
	for _, op := range col.All() {
		o.index(nil, op)
	}
	col.OnChange(o.index)
	return o, nil
}

// index keeps open true.
func (o *operations) index(old, now *api.Operation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old != nil {
		object := old.Labels[opObject]
		delete(o.open[object], old.ID)
		if len(o.open[object]) == 0 {
			delete(o.open, object)
		}
	}
	if now != nil && !now.Finished() {
		object := now.Labels[opObject]
		if o.open[object] == nil {
			o.open[object] = map[string]*api.Operation{}
		}
		o.open[object][now.ID] = now
	}
}

type liveOp struct {
	step        string
	done, total int64
	changes     int64
	more        chan struct{} // closed and replaced at every change
	cancel      context.CancelFunc
	cancelled   bool
}

func (o *operations) liveOf(id string) *liveOp {
	l := o.live[id]
	if l == nil {
		l = &liveOp{more: make(chan struct{})}
		o.live[id] = l
	}
	return l
}

func (l *liveOp) changed() {
	l.changes++
	close(l.more)
	l.more = make(chan struct{})
}

// newOperation makes the record; the caller commits it together with the
// change that it is about.
func newOperation(ctx context.Context, project, verb, target, object string) *api.Operation {
	id := store.NewID()
	op := &api.Operation{
		Meta: api.Meta{ID: id, Project: project, Name: id, Created: store.Now(), Labels: map[string]string{opObject: object}},
		Verb: verb, Target: target, State: api.OperationPending,
	}
	if key, _ := ctx.Value(idempotencyKey{}).(string); key != "" {
		op.Labels[opKey] = key
	}
	return op
}

// repeated finds the operation of an earlier call with ctx's idempotency key.
func (o *operations) repeated(ctx context.Context, verb string) *api.Operation {
	key, _ := ctx.Value(idempotencyKey{}).(string)
	if key == "" {
		return nil
	}
	for _, op := range o.col.All() {
		if op.Labels[opKey] == key && op.Verb == verb {
			return o.show(op)
		}
	}
	return nil
}

// openFor lists the unfinished operations on an object, oldest first.
func (o *operations) openFor(object string) []*api.Operation {
	o.mu.Lock()
	open := slices.Collect(maps.Values(o.open[object]))
	o.mu.Unlock()
	slices.SortFunc(open, func(a, b *api.Operation) int { return a.Created.Compare(b.Created) })
	return open
}

// show adds the live progress to a copy of the record.
func (o *operations) show(op *api.Operation) *api.Operation {
	c := *op
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.live[op.ID]
	switch {
	case l == nil:
	case c.Finished(): // somebody has asked for it since; the record says all
		c.Changes = l.changes
	default:
		c.Step, c.Done, c.Total, c.Changes = l.step, l.done, l.total, l.changes
		if l.step != "" {
			c.State = api.OperationRunning
		}
	}
	return &c
}

// progress tells those who wait for any of ops what is being done.
func (o *operations) progress(ops []*api.Operation, step string, done, total int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, op := range ops {
		l := o.liveOf(op.ID)
		l.step, l.done, l.total = step, done, total
		l.changed()
	}
}

// finished is the record of op with its end; the caller commits it.
func finished(op *api.Operation, result string, err error) *api.Operation {
	c := *op
	now := store.Now()
	c.Ended, c.Result, c.State = &now, result, api.OperationDone
	switch {
	case err == nil:
	case cancelled(err):
		c.State = api.OperationCancelled
		c.Error = api.Errorf(api.CodeCancelled, "%s %s was cancelled", op.Verb, op.Target)
	default:
		c.State, c.Error = api.OperationFailed, api.AsError(err)
	}
	return &c
}

// wake tells those who wait that the record has changed.
func (o *operations) wake(ops ...*api.Operation) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, op := range ops {
		if l := o.live[op.ID]; l != nil {
			l.changed()
			delete(o.live, op.ID)
		}
	}
}

// onCancel remembers how to cancel op and tells whether that was asked for
// already.
func (o *operations) onCancel(op *api.Operation, cancel context.CancelFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.liveOf(op.ID)
	l.cancel = cancel
	if l.cancelled {
		cancel()
	}
}

// Operation finds an operation by its id.
func (c *Controller) Operation(id string) (*api.Operation, error) {
	op := c.ops.col.ByID(id)
	if op == nil {
		return nil, api.Errorf(api.CodeNotFound, "operation %q not found", id).WithHint("the last %d are kept; `cleave operation list --all` shows them", operationsKept)
	}
	return c.ops.show(op), nil
}

// Operations lists a project's operations (all projects' if empty), the
// unfinished ones only unless all.
func (c *Controller) Operations(project string, all bool) ([]api.Operation, error) {
	var list []api.Operation
	for _, op := range c.ops.col.All() {
		if (project == "" || op.Project == project) && (all || !op.Finished()) {
			list = append(list, *c.ops.show(op))
		}
	}
	slices.SortFunc(list, func(a, b api.Operation) int { return a.Created.Compare(b.Created) })
	return list, nil
}

// WaitOperation returns when the operation has ended or has changed since
// its count of changes was changes. At the end of ctx it returns what is.
func (c *Controller) WaitOperation(ctx context.Context, id string, changes int64) (*api.Operation, error) {
	for {
		op, err := c.Operation(id)
		if err != nil || op.Finished() || op.Changes > changes {
			return op, err
		}
		// The channel is taken before the record is read again, so that a
		// change between the two is not missed.
		c.ops.mu.Lock()
		more := c.ops.liveOf(id).more
		c.ops.mu.Unlock()
		if again, err := c.Operation(id); err != nil || again.Finished() || again.Changes != op.Changes {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return op, nil
		}
	}
}

// CancelOperation asks the work to stop and undo itself. It returns at once;
// the operation ends as cancelled when that is done, or as done if it was
// too late.
func (c *Controller) CancelOperation(_ context.Context, id string) (*api.Operation, error) {
	op, err := c.Operation(id)
	if err != nil {
		return nil, err
	}
	if op.Finished() {
		return nil, api.Errorf(api.CodeConflict, "operation %s has already ended (%s)", id, op.State)
	}
	c.ops.mu.Lock()
	l := c.ops.liveOf(id)
	l.cancelled = true
	if l.cancel != nil {
		l.cancel()
	}
	c.ops.mu.Unlock()
	return c.Operation(id)
}

// runOperation records an operation that belongs to no instance and does its
// work in the background.
func (c *Controller) runOperation(ctx context.Context, verb, target string, work func(context.Context, func(string, int64, int64)) (string, error)) (*api.Operation, error) {
	if op := c.ops.repeated(ctx, verb); op != nil {
		return op, nil
	}
	op := newOperation(ctx, api.DefaultProject, verb, target, "")
	if err := c.store.Commit(ctx, c.ops.col.Create(op)); err != nil {
		return nil, err
	}
	wctx, cancel := context.WithCancel(c.ctx)
	c.ops.onCancel(op, cancel)
	c.wg.Go(func() {
		defer cancel()
		result, err := work(wctx, func(step string, done, total int64) {
			c.ops.progress([]*api.Operation{op}, step, done, total)
		})
		c.finish(op, result, err)
	})
	return c.ops.show(op), nil
}

// finish records the end of an operation on its own.
func (c *Controller) finish(op *api.Operation, result string, err error) {
	if c.ctx.Err() != nil && err != nil {
		return // the daemon ends; the next one says so
	}
	end := finished(op, result, c.naming(err))
	if err := c.commit(c.ops.col.Put(end)); err != nil {
		c.log.Error("the end of an operation could not be recorded", "operation", op.ID, "error", err)
	}
	c.ops.wake(op)
	c.pruneOperations()
}

// pruneOperations forgets the oldest ended operations, and the live side of
// those that somebody asked about after their end.
func (c *Controller) pruneOperations() {
	c.ops.mu.Lock()
	for id, l := range c.ops.live {
		if op := c.ops.col.ByID(id); op == nil || op.Finished() {
			l.changed()
			delete(c.ops.live, id)
		}
	}
	c.ops.mu.Unlock()
	if c.ops.col.Len() < operationsKept+pruneBatch {
		return
	}
	all := c.ops.col.All()
	slices.SortFunc(all, func(a, b *api.Operation) int { return a.Created.Compare(b.Created) })
	var batch []store.Op
	for _, op := range all {
		if op.Finished() && len(batch) < pruneBatch && time.Since(*op.Ended) > time.Minute {
			batch = append(batch, c.ops.col.Delete(op))
		}
	}
	if len(batch) > 0 {
		// Losing a race here only means that the next one prunes.
		_ = c.commit(batch...)
	}
}
