package server

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
	"github.com/cleave-project/cleave/keeper"
)

// fake is a backend in memory. What a test needs otherwise it sets as a
// function; what no test needs panics, by the nil interface.
type fake struct {
	Backend

	mu        sync.Mutex
	instances map[string]*api.Instance // by project/name
	ops       map[string]*api.Operation
	changed   chan struct{} // closed and replaced when an operation changes
	waited    func()        // called once, when somebody waits for an operation
	calls     []string
	lastQuery control.Query
	lastPatch string
	lastStart bool
	// lastContext is that of a change of power, as text.
	lastContext string

	failWith error // of every mutation, when set
	events   func(ctx context.Context, since control.Since, yield func(api.Event) error) error
	logs     func(ctx context.Context, opts keeper.LogOptions, yield func(keeper.LogEntry) error) error
	exporter func(w io.Writer) error
	images   []api.Image
	stats    []api.Stats
}

func newFake() *fake {
	return &fake{instances: map[string]*api.Instance{}, ops: map[string]*api.Operation{}, changed: make(chan struct{})}
}

func (f *fake) add(project, name string, revision int64) {
	f.instances[project+"/"+name] = &api.Instance{Meta: api.Meta{Project: project, Name: name, Revision: revision}}
}

func (f *fake) call(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, s)
}

func (f *fake) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// begin makes an operation that is under way.
func (f *fake) begin(id string) (*api.Operation, error) {
	if f.failWith != nil {
		return nil, f.failWith
	}
	return f.put(api.Operation{Meta: api.Meta{ID: id, Name: id}, State: api.OperationRunning, Changes: 1}), nil
}

func (f *fake) put(op api.Operation) *api.Operation {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops[op.ID] = &op
	close(f.changed)
	f.changed = make(chan struct{})
	c := op
	return &c
}

func (f *fake) Instance(project, name string) (*api.Instance, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if in := f.instances[project+"/"+name]; in != nil {
		c := *in
		return &c, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "instance %q does not exist", name)
}

func (f *fake) Instances(project string, q control.Query) (api.List[api.Instance], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastQuery = q
	var l api.List[api.Instance]
	for _, in := range f.instances {
		if q.AllProjects || in.Project == project {
			l.Items = append(l.Items, *in)
		}
	}
	slices.SortFunc(l.Items, func(a, b api.Instance) int { return strings.Compare(a.Name, b.Name) })
	return l, nil
}

func (f *fake) CreateInstance(ctx context.Context, in *api.Instance, start bool) (*api.Operation, error) {
	f.call("create " + in.Project + "/" + in.Name)
	f.lastStart = start
	return f.begin("opcreate")
}

func (f *fake) PatchInstance(_ context.Context, project, name string, revision int64, patch []byte) (*api.Operation, error) {
	f.lastPatch = string(patch)
	if in, err := f.Instance(project, name); err != nil || (revision != 0 && in.Revision != revision) {
		return nil, api.Errorf(api.CodeConflict, "%s has changed", name)
	}
	return f.begin("oppatch")
}

func (f *fake) PowerInstance(ctx context.Context, project, name string, req control.PowerRequest) (*api.Operation, error) {
	f.lastContext = fmt.Sprint(ctx)
	f.call(req.Action + " " + project + "/" + name)
	return f.begin("oppower")
}

func (f *fake) Operation(id string) (*api.Operation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op := f.ops[id]; op != nil {
		c := *op
		return &c, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "operation %q does not exist", id)
}

func (f *fake) WaitOperation(ctx context.Context, id string, changes int64) (*api.Operation, error) {
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		op, err := f.Operation(id)
		if err != nil || op.Finished() || op.Changes > changes {
			return op, err
		}
		f.mu.Lock()
		waited := f.waited
		f.waited = nil
		f.mu.Unlock()
		if waited != nil {
			go waited()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// whenWaited has do called once somebody waits for an operation.
func (f *fake) whenWaited(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waited = do
}

func (f *fake) Events(ctx context.Context, since control.Since, yield func(api.Event) error) error {
	return f.events(ctx, since, yield)
}

func (f *fake) Logs(ctx context.Context, _, _ string, opts keeper.LogOptions, yield func(keeper.LogEntry) error) error {
	return f.logs(ctx, opts, yield)
}

func (f *fake) Images(context.Context) ([]api.Image, error) { return f.images, nil }

func (f *fake) ImportImage(_ context.Context, name, _ string, r io.Reader) (*api.Image, error) {
	n, err := io.Copy(io.Discard, r)
	return &api.Image{Names: []string{name}, Size: api.Bytes(n)}, err
}

func (f *fake) ExportInstance(_ context.Context, _, name, format string, w io.Writer) error {
	f.call("export " + name + " " + format)
	return f.exporter(w)
}

func (f *fake) ExportImage(_ context.Context, _, _ string, w io.Writer) error { return f.exporter(w) }

func (f *fake) CreatePool(_ context.Context, p *api.Pool) (*api.Pool, error) {
	f.call("pool " + p.Name)
	return p, nil
}

func (f *fake) CreateToken(_ context.Context, t *api.Token) (*api.Token, error) {
	t.Hash, t.Secret = "hash", "secret"
	return t, nil
}

func (f *fake) Tokens(context.Context) ([]api.Token, error) {
	return []api.Token{{Meta: api.Meta{Name: "laptop"}, Hash: "hash"}}, nil
}

const goodToken = "good-secret"

func (f *fake) CheckToken(secret string) (*api.Token, error) {
	if secret != goodToken {
		return nil, api.Errorf(api.CodeUnauthorized, "the token is unknown")
	}
	return &api.Token{Meta: api.Meta{Name: "laptop"}}, nil
}

func (f *fake) Info() api.HostInfo { return api.HostInfo{Version: "test", Started: time.Unix(1, 0)} }

func (f *fake) Doctor(context.Context) []api.Finding { return nil }

func (f *fake) AllStats(context.Context, string) ([]api.Stats, error) { return f.stats, nil }
