package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

// ImageRef names an image. References hold slashes, so they are no part of
// the path.
type ImageRef struct {
	Hostwide
	Ref string `query:"ref" required:"true" doc:"Reference or digest" example:"docker.io/library/debian:bookworm"`
}

type listImages struct {
	Hostwide
	Paged
}

type pullImage struct {
	Hostwide
	Mutation
	Waiting
	Body api.ImagePull
}

type buildImage struct {
	Hostwide
	Mutation
	Waiting
	Body api.ImageBuild
}

type importImage struct {
	Hostwide
	Unconditional
	Name   string `query:"name" doc:"Name of the image; the archive's own if left out"`
	Format string `query:"format" enum:"raw,qcow2,vmdk,vhdx,vpc,vdi,ova,iso" doc:"Of a disk; found out from its content if left out"`
	Upload upload
}

type exportImage struct {
	ImageRef
	Format string `query:"format" enum:"oci,tar,qcow2,raw,ova" doc:"oci: an OCI layout; tar: the root file system; the others for disks. oci or qcow2 if left out"`
}

type deleteImage struct {
	ImageRef
	Unconditional
	Force bool `query:"force" doc:"Also when other names remain"`
}

type pruneImages struct {
	Hostwide
	Unconditional
}

// Pruned is what a prune removed.
type Pruned struct {
	Freed   api.Bytes `json:"freed"`
	Digests []string  `json:"digests"`
}

func (s *Server) imageRoutes() {
	const tag = "images"
	handle(s, route(tag, "list-images", http.MethodGet, "/v1/images", "List images"),
		func(ctx context.Context, in *listImages) (*page[api.Image], error) {
			all, err := s.backend.Images(ctx)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Paged, func(i *api.Image) string { return i.Digest })
		})
	handle(s, route(tag, "get-image", http.MethodGet, "/v1/image", "Show an image"),
		func(ctx context.Context, in *ImageRef) (*plain[api.Image], error) {
			return plainOf(s.backend.Image(ctx, in.Ref))
		})
	handle(s, s.accepted(example(route(tag, "pull-image", http.MethodPost, "/v1/images/pull", "Pull an image from a registry"),
		map[string]any{"reference": "debian:bookworm"})),
		func(ctx context.Context, in *pullImage) (*started, error) {
			op, err := s.backend.PullImage(ctx, in.Body)
			return s.started(ctx, in.Waiting, op, err)
		})
	handle(s, s.accepted(example(route(tag, "build-image", http.MethodPost, "/v1/images/build", "Build an image with a distribution's bootstrap tool"),
		map[string]any{"base": "debian:bookworm", "name": "debian-systemd", "system": true})),
		func(ctx context.Context, in *buildImage) (*started, error) {
			op, err := s.backend.BuildImage(ctx, in.Body)
			return s.started(ctx, in.Waiting, op, err)
		})
	imp := route(tag, "import-image", http.MethodPost, "/v1/images/import", "Import an image from an archive or a disk")
	imp.Description = "An OCI layout, a docker-save archive, a root file system as tar, or a disk of a system of its own or an installer's medium (qcow2, raw, vmdk, vhdx, vpc, vdi, ova, iso), compressed or not. Disks must be whole in themselves. The answer comes when the image is there."
	imp.RequestBody = &huma.RequestBody{Required: true, Content: binaryBody("application/octet-stream")}
	handle(s, imp, func(ctx context.Context, in *importImage) (*plain[api.Image], error) {
		return plainOf(s.backend.ImportImage(ctx, in.Name, in.Format, in.Upload.body))
	})
	exp := route(tag, "export-image", http.MethodGet, "/v1/image/export", "Export an image as an archive")
	exp.Description = "If it fails on the way the connection is cut."
	exp.Responses = map[string]*huma.Response{"200": {Description: "The archive or disk", Content: binaryBody(tarType)}}
	handle(s, exp, s.exportImage)
	handle(s, route(tag, "delete-image", http.MethodDelete, "/v1/image", "Delete an image, or one of its names"),
		func(ctx context.Context, in *deleteImage) (*nothing, error) {
			return nil, s.backend.DeleteImage(ctx, in.Ref, in.Force)
		})
	handle(s, route(tag, "prune-images", http.MethodPost, "/v1/images/prune", "Delete the images that nothing needs"),
		func(ctx context.Context, _ *pruneImages) (*plain[Pruned], error) {
			freed, digests, err := s.backend.PruneImages(ctx)
			if digests == nil {
				digests = []string{}
			}
			return plainOf(&Pruned{Freed: freed, Digests: digests}, err)
		})
}

func (s *Server) exportImage(_ context.Context, in *exportImage) (*stream, error) {
	return &stream{Body: func(hc huma.Context) {
		r, w := unwrap(hc)
		out := newDownload(s, w, tarType)
		out.finish("image "+in.Ref, s.backend.ExportImage(r.Context(), in.Ref, in.Format, out))
	}}, nil
}
