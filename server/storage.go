package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

// PoolName names a pool.
type PoolName struct {
	Hostwide
	Name string `path:"name" doc:"Name of the pool" example:"default"`
}

// VolumeName names a volume.
type VolumeName struct {
	Scoped
	Name string `path:"name" doc:"Name of the volume" example:"data"`
}

type listPools struct {
	Hostwide
	Paged
}

type listScoped struct {
	Scoped
	Paged
}

type createPool struct {
	Hostwide
	Unconditional
	Body api.Pool
}

type deletePool struct {
	PoolName
	Unconditional
}

type createVolume struct {
	Scoped
	Unconditional
	Body api.Volume
}

type patchVolume struct {
	VolumeName
	Conditional
	Body mergePatch[api.VolumeSpec] `contentType:"application/merge-patch+json"`
}

type deleteVolume struct {
	VolumeName
	Unconditional
}

// created describes the answer to what makes an object at once.
func created(op huma.Operation) huma.Operation {
	op.DefaultStatus = http.StatusCreated
	return op
}

func (s *Server) poolRoutes() {
	const tag = "storage"
	handle(s, route(tag, "list-pools", http.MethodGet, "/v1/pools", "List pools"),
		func(ctx context.Context, in *listPools) (*page[api.Pool], error) {
			all, err := s.backend.Pools(ctx)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Paged, func(p *api.Pool) string { return p.Name })
		})
	op := created(example(route(tag, "create-pool", http.MethodPost, "/v1/pools", "Create a pool"),
		map[string]any{"name": "fast", "spec": map[string]any{"driver": "btrfs", "source": "/srv/fast"}}))
	op.Description = "A pool with a source, a directory of the host, is for root over the unix socket."
	handle(s, op, s.createPool)
	handle(s, route(tag, "get-pool", http.MethodGet, "/v1/pools/{name}", "Show a pool"),
		func(ctx context.Context, in *PoolName) (*object[api.Pool], error) {
			return objectOf(s.backend.Pool(ctx, in.Name))
		})
	handle(s, route(tag, "delete-pool", http.MethodDelete, "/v1/pools/{name}", "Delete an empty pool"),
		func(ctx context.Context, in *deletePool) (*nothing, error) {
			return nil, s.backend.DeletePool(ctx, in.Name)
		})
}

func (s *Server) createPool(ctx context.Context, in *createPool) (*object[api.Pool], error) {
	p := &in.Body
	resetMeta(&p.Meta)
	p.Status = api.PoolStatus{}
	if p.Spec.Source != "" {
		if err := needRoot(ctx, "spec.source", "a pool in "+p.Spec.Source+" of the host"); err != nil {
			return nil, err
		}
	}
	return objectOf(s.backend.CreatePool(ctx, p))
}

func (s *Server) volumeRoutes() {
	const tag = "storage"
	handle(s, route(tag, "list-volumes", http.MethodGet, "/v1/volumes", "List volumes"),
		func(ctx context.Context, in *listScoped) (*page[api.Volume], error) {
			project, err := in.project()
			if err != nil {
				return nil, err
			}
			all, err := s.backend.Volumes(ctx, project)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Paged, func(v *api.Volume) string { return metaKey(&v.Meta) })
		})
	handle(s, created(example(route(tag, "create-volume", http.MethodPost, "/v1/volumes", "Create a volume"),
		map[string]any{"name": "data", "spec": map[string]any{"size": "20GiB"}})),
		func(ctx context.Context, in *createVolume) (*object[api.Volume], error) {
			if err := adopt(&in.Body.Meta, in.Scoped); err != nil {
				return nil, err
			}
			in.Body.Status = api.VolumeStatus{}
			return objectOf(s.backend.CreateVolume(ctx, &in.Body))
		})
	handle(s, route(tag, "get-volume", http.MethodGet, "/v1/volumes/{name}", "Show a volume"),
		func(ctx context.Context, in *VolumeName) (*object[api.Volume], error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			return objectOf(s.backend.Volume(ctx, p, in.Name))
		})
	patch := route(tag, "patch-volume", http.MethodPatch, "/v1/volumes/{name}", "Change a volume")
	patch.Description = "A JSON merge patch (RFC 7396) of labels and spec."
	handle(s, patch, s.patchVolume)
	handle(s, route(tag, "delete-volume", http.MethodDelete, "/v1/volumes/{name}", "Delete a volume that no instance uses"),
		func(ctx context.Context, in *deleteVolume) (*nothing, error) {
			p, err := in.project()
			if err != nil {
				return nil, err
			}
			return nil, s.backend.DeleteVolume(ctx, p, in.Name)
		})
}

func (s *Server) patchVolume(ctx context.Context, in *patchVolume) (*object[api.Volume], error) {
	p, rev, err := target(in.Scoped, in.Conditional)
	if err != nil {
		return nil, err
	}
	v, err := s.backend.PatchVolume(ctx, p, in.Name, rev, in.Body.raw)
	return objectOf(v, precondition(err, rev, func() (int64, error) { return revisionOf(s.backend.Volume(ctx, p, in.Name)) }))
}

// revisionOf is the revision of an object that was looked up.
func revisionOf(o api.Object, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return o.GetMeta().Revision, nil
}
