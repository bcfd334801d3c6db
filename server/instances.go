package server

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
)

// InstanceName are the requests about one instance.
type InstanceName struct {
	Scoped
	Name string `path:"name" doc:"Name of the instance" example:"web"`
}

type listInstances struct {
	Listed
	Paged
	Label  []string  `query:"label,explode" doc:"Only those with this label, as KEY=VALUE; may be repeated" example:"tier=front"`
	Phase  api.Phase `query:"phase" enum:"creating,stopped,starting,running,paused,failed,deleting" doc:"Only those in this phase"`
	Prefix string    `query:"name" doc:"Only those whose name begins like this"`
}

type createInstance struct {
	Scoped
	Mutation
	Waiting
	Start bool `query:"start" doc:"Start it as well; else spec.power says"`
	Body  api.Instance
}

type patchInstance struct {
	InstanceName
	Keyed
	Conditional
	Waiting
	Body mergePatch[api.InstanceSpec] `contentType:"application/merge-patch+json"`
}

type renameInstance struct {
	InstanceName
	Keyed
	Conditional
	Waiting
	Body newName
}

type newName struct {
	Name string `json:"name" doc:"The new name"`
}

type copyInstance struct {
	InstanceName
	Mutation
	Waiting
	Body instanceCopy
}

type instanceCopy struct {
	Name string   `json:"name" doc:"Name of the copy"`
	Kind api.Kind `json:"kind,omitempty" enum:"container,pvm,vm" doc:"The wall around the copy; the same if left out"`
}

type powerInstance struct {
	InstanceName
	Mutation
	Waiting
	Body *powerOptions
}

type powerOptions struct {
	TimeoutSeconds *int `json:"timeoutSeconds,omitempty" minimum:"0" doc:"Between the stop signal and SIGKILL; the instance's own if left out"`
	Force          bool `json:"force,omitempty" doc:"Don't ask the guest"`
	Save           bool `json:"save,omitempty" doc:"Of a stop: keep the memory, for the next start to go on from"`
	Fresh          bool `json:"fresh,omitempty" doc:"Of a start: without the memory that was saved"`
}

type deleteInstance struct {
	InstanceName
	Keyed
	Conditional
	Waiting
	Force bool `query:"force" doc:"Also when it runs"`
}

var exampleInstance = map[string]any{
	"name": "web", "labels": map[string]any{"tier": "front"},
	"spec": map[string]any{
		"image": "base", "command": []string{"httpd", "-f", "-p", "80", "-h", "/etc"},
		"resources": map[string]any{"cpus": 0.5, "memory": "256MiB"},
		"publish":   []map[string]any{{"hostPort": 8080, "guestPort": 80}},
	},
}

func (s *Server) instanceRoutes() {
	const tag = "instances"
	handle(s, route(tag, "list-instances", http.MethodGet, "/v1/instances", "List instances"), s.listInstances)
	handle(s, s.accepted(example(route(tag, "create-instance", http.MethodPost, "/v1/instances", "Create an instance"), exampleInstance)), s.createInstance)
	handle(s, route(tag, "get-instance", http.MethodGet, "/v1/instances/{name}", "Show an instance"),
		func(_ context.Context, in *InstanceName) (*object[api.Instance], error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			return objectOf(s.backend.Instance(p, in.Name))
		})
	patch := route(tag, "patch-instance", http.MethodPatch, "/v1/instances/{name}", "Change an instance")
	patch.Description = "A JSON merge patch (RFC 7396) of labels and spec. What can be changed while it runs is changed at once."
	handle(s, s.accepted(patch), s.patchInstance)
	handle(s, s.accepted(route(tag, "delete-instance", http.MethodDelete, "/v1/instances/{name}", "Delete an instance")), s.deleteInstance)
	handle(s, s.accepted(example(route(tag, "rename-instance", http.MethodPost, "/v1/instances/{name}/rename", "Rename an instance"),
		map[string]any{"name": "web2"})), s.renameInstance)
	cp := route(tag, "copy-instance", http.MethodPost, "/v1/instances/{name}/copy", "Copy a stopped instance")
	cp.Description = "With the files of its root and its settings, and addresses of its own. Behind another wall the same image is under the same files."
	handle(s, s.accepted(example(cp, map[string]any{"name": "web2", "kind": "vm"})), s.copyInstance)
	for _, action := range []struct{ name, summary string }{
		{"start", "Start an instance"},
		{"stop", "Stop an instance"},
		{"restart", "Stop an instance and start it again"},
		{"pause", "Freeze an instance"},
		{"resume", "Thaw a paused instance"},
	} {
		op := route(tag, action.name+"-instance", http.MethodPost, "/v1/instances/{name}/"+action.name, action.summary)
		handle(s, s.accepted(example(op, map[string]any{"timeoutSeconds": 30})),
			func(ctx context.Context, in *powerInstance) (*started, error) { return s.power(ctx, in, action.name) })
	}
}

func (s *Server) listInstances(_ context.Context, in *listInstances) (*page[api.Instance], error) {
	q := control.Query{Phase: in.Phase, Prefix: in.Prefix, Cursor: in.Cursor, Limit: in.Limit}
	project := in.project()
	q.AllProjects = project == ""
	for _, l := range in.Label {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, api.Errorf(api.CodeInvalid, "%q is no label to select by", l).WithField("label").WithHint("write KEY=VALUE")
		}
		if q.Labels == nil {
			q.Labels = map[string]string{}
		}
		q.Labels[k] = v
	}
	l, err := s.backend.Instances(project, q)
	if err != nil {
		return nil, err
	}
	if l.Items == nil {
		l.Items = []api.Instance{}
	}
	return &page[api.Instance]{Body: l}, nil
}

func (s *Server) createInstance(ctx context.Context, in *createInstance) (*started, error) {
	inst := &in.Body
	if err := adopt(&inst.Meta, in.Scoped); err != nil {
		return nil, err
	}
	inst.Status = api.InstanceStatus{}
	if err := hostPaths(ctx, inst.Spec.Mounts, inst.Spec.Machine.ISO); err != nil {
		return nil, err
	}
	op, err := s.backend.CreateInstance(ctx, inst, in.Start)
	return s.started(ctx, in.Waiting, op, err)
}

func (s *Server) patchInstance(ctx context.Context, in *patchInstance) (*started, error) {
	p, rev, err := target(in.Scoped, in.Conditional)
	if err != nil {
		return nil, err
	}
	var patch struct {
		Spec struct {
			Mounts  []api.Mount `json:"mounts"`
			Machine struct {
				ISO string `json:"iso"`
			} `json:"machine"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(in.Body.raw, &patch); err != nil {
		return nil, api.Errorf(api.CodeInvalid, "the patch can't be read: %w", err)
	}
	if err := hostPaths(ctx, patch.Spec.Mounts, patch.Spec.Machine.ISO); err != nil {
		return nil, err
	}
	op, err := s.backend.PatchInstance(ctx, p, in.Name, rev, in.Body.raw)
	return s.started(ctx, in.Waiting, op, s.stale(err, p, in.Name, rev))
}

func (s *Server) renameInstance(ctx context.Context, in *renameInstance) (*started, error) {
	p, rev, err := target(in.Scoped, in.Conditional)
	if err != nil {
		return nil, err
	}
	op, err := s.backend.RenameInstance(ctx, p, in.Name, in.Body.Name, rev)
	return s.started(ctx, in.Waiting, op, s.stale(err, p, in.Name, rev))
}

func (s *Server) copyInstance(ctx context.Context, in *copyInstance) (*started, error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	op, err := s.backend.CopyInstance(ctx, p, in.Name, in.Body.Name, in.Body.Kind)
	return s.started(ctx, in.Waiting, op, err)
}

func (s *Server) deleteInstance(ctx context.Context, in *deleteInstance) (*started, error) {
	p, rev, err := target(in.Scoped, in.Conditional)
	if err != nil {
		return nil, err
	}
	op, err := s.backend.DeleteInstance(ctx, p, in.Name, in.Force, rev)
	return s.started(ctx, in.Waiting, op, s.stale(err, p, in.Name, rev))
}

func (s *Server) power(ctx context.Context, in *powerInstance, action string) (*started, error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	req := control.PowerRequest{Action: action}
	if in.Body != nil {
		req.Force, req.TimeoutSeconds = in.Body.Force, in.Body.TimeoutSeconds
		req.Save, req.Fresh = in.Body.Save, in.Body.Fresh
	}
	op, err := s.backend.PowerInstance(ctx, p, in.Name, req)
	return s.started(ctx, in.Waiting, op, err)
}

func target(n Scoped, c Conditional) (project string, revision int64, err error) {
	if project, err = n.project(); err != nil {
		return "", 0, err
	}
	revision, err = c.revision()
	return project, revision, err
}

// stale tells a conflict of revisions from other conflicts.
func (s *Server) stale(err error, project, name string, revision int64) error {
	return precondition(err, revision, func() (int64, error) { return revisionOf(s.backend.Instance(project, name)) })
}

// hostPaths lets nobody but root bring the host's directories and files into
// a guest.
func hostPaths(ctx context.Context, mounts []api.Mount, iso string) error {
	if strings.HasPrefix(iso, "/") {
		return needRoot(ctx, "spec.machine.iso", "inserting "+iso+" of the host")
	}
	for _, m := range mounts {
		if m.HostPath != "" {
			return needRoot(ctx, "spec.mounts", "mounting "+m.HostPath+" of the host")
		}
	}
	return nil
}
