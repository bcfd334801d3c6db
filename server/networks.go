package server

import (
	"context"
	"net/http"

	"github.com/cleave-project/cleave/api"
)

// NetworkName names a network.
type NetworkName struct {
	Scoped
	Name string `path:"name" doc:"Name of the network" example:"default"`
}

type createNetwork struct {
	Scoped
	Unconditional
	Body api.Network
}

type patchNetwork struct {
	NetworkName
	Conditional
	Body mergePatch[api.NetworkSpec] `contentType:"application/merge-patch+json"`
}

type deleteNetwork struct {
	NetworkName
	Unconditional
}

func (s *Server) networkRoutes() {
	const tag = "networks"
	handle(s, route(tag, "list-networks", http.MethodGet, "/v1/networks", "List networks"),
		func(ctx context.Context, in *listScoped) (*page[api.Network], error) {
			project, err := in.project()
			if err != nil {
				return nil, err
			}
			all, err := s.backend.Networks(ctx, project)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Paged, func(n *api.Network) string { return metaKey(&n.Meta) })
		})
	handle(s, created(example(route(tag, "create-network", http.MethodPost, "/v1/networks", "Create a network"),
		map[string]any{"name": "back", "spec": map[string]any{"ipv4": "10.20.0.0/24", "nat": false}})),
		func(ctx context.Context, in *createNetwork) (*object[api.Network], error) {
			if err := adopt(&in.Body.Meta, in.Scoped); err != nil {
				return nil, err
			}
			in.Body.Status = api.NetworkStatus{}
			return objectOf(s.backend.CreateNetwork(ctx, &in.Body))
		})
	handle(s, route(tag, "get-network", http.MethodGet, "/v1/networks/{name}", "Show a network"),
		func(ctx context.Context, in *NetworkName) (*object[api.Network], error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			return objectOf(s.backend.Network(ctx, p, in.Name))
		})
	patch := route(tag, "patch-network", http.MethodPatch, "/v1/networks/{name}", "Change a network")
	patch.Description = "A JSON merge patch (RFC 7396) of labels and spec."
	handle(s, patch, s.patchNetwork)
	handle(s, route(tag, "delete-network", http.MethodDelete, "/v1/networks/{name}", "Delete a network that no instance uses"),
		func(ctx context.Context, in *deleteNetwork) (*nothing, error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			return nil, s.backend.DeleteNetwork(ctx, p, in.Name)
		})
}

func (s *Server) patchNetwork(ctx context.Context, in *patchNetwork) (*object[api.Network], error) {
	p, rev, err := target(in.Scoped, in.Conditional)
	if err != nil {
		return nil, err
	}
	n, err := s.backend.PatchNetwork(ctx, p, in.Name, rev, in.Body.raw)
	return objectOf(n, precondition(err, rev, func() (int64, error) { return revisionOf(s.backend.Network(ctx, p, in.Name)) }))
}
