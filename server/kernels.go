package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

// KernelName names a kernel.
type KernelName struct {
	Hostwide
	Name string `path:"name" doc:"Name of the kernel" example:"6.1.0-32-cloud-amd64"`
}

type listKernels struct {
	Hostwide
	Paged
}

type addKernel struct {
	Hostwide
	Unconditional
	Body api.KernelAdd
}

type importKernel struct {
	Hostwide
	Unconditional
	Name    string `query:"name" doc:"Its release if left out"`
	Kind    string `query:"kind" enum:"pvm,vm" doc:"Refuse it unless it is for this kind; vm for all but root over the unix socket"`
	Default bool   `query:"default" doc:"Make it the default one of its kind and architecture"`
	Upload  upload
}

type fetchKernel struct {
	Hostwide
	Mutation
	Waiting
	Body api.KernelFetch
}

type changeKernel struct {
	KernelName
	Unconditional
}

func (s *Server) kernelRoutes() {
	const tag = "kernels"
	handle(s, route(tag, "list-kernels", http.MethodGet, "/v1/kernels", "List kernels"),
		func(ctx context.Context, in *listKernels) (*page[api.Kernel], error) {
			all, err := s.backend.AllKernels(ctx)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Paged, func(k *api.Kernel) string { return k.Name })
		})
	handle(s, route(tag, "get-kernel", http.MethodGet, "/v1/kernels/{name}", "Show a kernel"),
		func(ctx context.Context, in *KernelName) (*plain[api.Kernel], error) {
			return plainOf(s.backend.Kernel(ctx, in.Name))
		})
	add := created(example(route(tag, "add-kernel", http.MethodPost, "/v1/kernels", "Add a kernel from files of the host"),
		map[string]any{"image": "/boot/vmlinuz-6.1.0-32-amd64", "modules": "/lib/modules/6.1.0-32-amd64"}))
	add.Description = "For root over the unix socket alone."
	handle(s, add, func(ctx context.Context, in *addKernel) (*plain[api.Kernel], error) {
		if err := needRoot(ctx, "image", "a kernel from files of the host"); err != nil {
			return nil, err
		}
		return plainOf(s.backend.AddKernel(ctx, in.Body))
	})
	imp := created(route(tag, "import-kernel", http.MethodPost, "/v1/kernels/import", "Import a kernel"))
	imp.Description = "A .deb package with a kernel and its modules, or a kernel that has all it needs built in. The answer comes when the kernel is there."
	imp.RequestBody = &huma.RequestBody{Required: true, Content: binaryBody("application/octet-stream")}
	handle(s, imp, s.importKernel)
	handle(s, s.accepted(example(route(tag, "fetch-kernel", http.MethodPost, "/v1/kernels/fetch", "Fetch a distribution's kernel package"),
		map[string]any{"distribution": "debian", "kind": "vm"})),
		func(ctx context.Context, in *fetchKernel) (*started, error) {
			op, err := s.backend.FetchKernel(ctx, in.Body)
			return s.started(ctx, in.Waiting, op, err)
		})
	handle(s, route(tag, "default-kernel", http.MethodPost, "/v1/kernels/{name}/default", "Make a kernel the default one of its kind and architecture"),
		func(ctx context.Context, in *changeKernel) (*plain[api.Kernel], error) {
			return plainOf(s.backend.SetDefaultKernel(ctx, in.Name))
		})
	handle(s, route(tag, "delete-kernel", http.MethodDelete, "/v1/kernels/{name}", "Delete a kernel that no instance needs"),
		func(ctx context.Context, in *changeKernel) (*nothing, error) {
			return nil, s.backend.DeleteKernel(ctx, in.Name)
		})
}

// importKernel takes a kernel from anybody for virtual machines. One for
// paravirtual machines is a program that the host executes, if behind a wall.
func (s *Server) importKernel(ctx context.Context, in *importKernel) (*plain[api.Kernel], error) {
	kind := api.Kind(in.Kind)
	if err := needRoot(ctx, "kind", "a kernel that the host executes"); err != nil {
		if kind == api.KindPVM {
			return nil, err
		}
		kind = api.KindVM
	}
	return plainOf(s.backend.ImportKernel(ctx, api.KernelAdd{Name: in.Name, Kind: kind, Default: in.Default}, in.Upload.body))
}
