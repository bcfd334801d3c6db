package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"

	"github.com/cleave-project/cleave/api"
)

// Filter narrows a listing of instances; zero fields don't.
type Filter struct {
	Labels      map[string]string
	Phase       api.Phase
	Prefix      string // of the name
	AllProjects bool
}

func (f Filter) query() url.Values {
	q := url.Values{}
	for k, v := range f.Labels {
		q.Add("label", k+"="+v)
	}
	if f.Phase != "" {
		q.Set("phase", string(f.Phase))
	}
	if f.Prefix != "" {
		q.Set("name", f.Prefix)
	}
	if f.AllProjects {
		q.Set("project", "*")
	}
	return q
}

// Instances lists instances by name.
func (c *Client) Instances(ctx context.Context, f Filter) iter.Seq2[api.Instance, error] {
	return pages[api.Instance](ctx, c, "/instances", f.query())
}

// Instance returns one instance.
func (c *Client) Instance(ctx context.Context, n string) (*api.Instance, error) {
	return do[api.Instance](ctx, c, get(name("instances", n)))
}

// CreateInstance makes an instance, and starts it when start is set.
func (c *Client) CreateInstance(ctx context.Context, in *api.Instance, start bool) (*api.Operation, error) {
	r := request{method: http.MethodPost, path: "/instances", body: in}
	if start {
		r.query = url.Values{"start": {"true"}}
	}
	return do[api.Operation](ctx, c, r)
}

// PatchInstance applies a JSON merge patch (RFC 7396) of labels and spec. A
// revision other than 0 must be the instance's own, or the call is a conflict.
func (c *Client) PatchInstance(ctx context.Context, n string, revision int64, patch any) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPatch, path: name("instances", n), body: patch, revision: revision})
}

// AttachDevice adds a mount or a port to an instance, at once where that is
// possible.
func (c *Client) AttachDevice(ctx context.Context, n string, a api.Attachment) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: name("instances", n) + "/attach", body: a})
}

// DetachDevice takes a mount or a port from an instance, like AttachDevice.
func (c *Client) DetachDevice(ctx context.Context, n string, d api.Detachment) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: name("instances", n) + "/detach", body: d})
}

// RenameInstance gives an instance another name.
func (c *Client) RenameInstance(ctx context.Context, n, to string) (*api.Operation, error) {
	body := map[string]string{"name": to}
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: name("instances", n) + "/rename", body: body})
}

// CopyInstance copies a stopped instance, behind another wall if kind names
// one.
func (c *Client) CopyInstance(ctx context.Context, n, to string, kind api.Kind) (*api.Operation, error) {
	body := map[string]string{"name": to}
	if kind != "" {
		body["kind"] = string(kind)
	}
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: name("instances", n) + "/copy", body: body})
}

// Action is what can be done to an instance's power.
type Action string

// The actions.
const (
	Start   Action = "start"
	Stop    Action = "stop"
	Restart Action = "restart"
	Pause   Action = "pause"
	Resume  Action = "resume"
)

// PowerOptions refine an action.
type PowerOptions struct {
	TimeoutSeconds *int `json:"timeoutSeconds,omitempty"` // until SIGKILL; the instance's own if nil
	Force          bool `json:"force,omitempty"`          // don't ask the guest
	Save           bool `json:"save,omitempty"`           // stop: keep the memory
	Fresh          bool `json:"fresh,omitempty"`          // start: without saved memory
}

// Power performs an action.
func (c *Client) Power(ctx context.Context, n string, a Action, o PowerOptions) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: name("instances", n) + "/" + string(a), body: o})
}

// DeleteInstance deletes an instance; a running one only with force.
func (c *Client) DeleteInstance(ctx context.Context, n string, force bool) (*api.Operation, error) {
	r := request{method: http.MethodDelete, path: name("instances", n)}
	if force {
		r.query = url.Values{"force": {"true"}}
	}
	return do[api.Operation](ctx, c, r)
}

// Stats returns the counters of a running instance.
func (c *Client) Stats(ctx context.Context, n string) (*api.Stats, error) {
	return do[api.Stats](ctx, c, get(name("instances", n)+"/stats"))
}

// AllStats returns the counters of all running instances of the project.
func (c *Client) AllStats(ctx context.Context) ([]api.Stats, error) {
	return Collect(pages[api.Stats](ctx, c, "/stats", nil))
}
