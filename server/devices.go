package server

import (
	"context"
	"net/http"

	"github.com/cleave-project/cleave/api"
)

type attachDevice struct {
	InstanceName
	Mutation
	Waiting
	Body api.Attachment
}

type detachDevice struct {
	InstanceName
	Mutation
	Waiting
	Body api.Detachment
}

func (s *Server) deviceRoutes() {
	const tag = "instances"
	attach := route(tag, "attach-device", http.MethodPost, "/v1/instances/{name}/attach", "Add a volume or a port to an instance")
	attach.Description = "A running guest gets it at once where its kind can do that; else the operation's last step says that it takes effect at the next start, and why."
	handle(s, s.accepted(example(attach, map[string]any{"mount": map[string]any{"volume": "data", "target": "/var/lib/data"}})),
		func(ctx context.Context, in *attachDevice) (*started, error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			if in.Body.Mount != nil {
				if err := hostPaths(ctx, []api.Mount{*in.Body.Mount}, ""); err != nil {
					return nil, err
				}
			}
			op, err := s.backend.AttachDevice(ctx, p, in.Name, in.Body)
			return s.started(ctx, in.Waiting, op, err)
		})
	detach := route(tag, "detach-device", http.MethodPost, "/v1/instances/{name}/detach", "Take a volume or a port from an instance")
	detach.Description = "Nothing in a running guest may use it. What the guest had when it started may stay until its next start, which the operation's last step says."
	handle(s, s.accepted(example(detach, map[string]any{"volume": "data"})),
		func(ctx context.Context, in *detachDevice) (*started, error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			op, err := s.backend.DetachDevice(ctx, p, in.Name, in.Body)
			return s.started(ctx, in.Waiting, op, err)
		})
}
