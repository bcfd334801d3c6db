package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"

	"github.com/cleave-project/cleave/api"
)

// Kernels lists the kernels that boot images in machines.
func (c *Client) Kernels(ctx context.Context) iter.Seq2[api.Kernel, error] {
	return pages[api.Kernel](ctx, c, "/kernels", nil)
}

// Kernel returns a kernel by its name.
func (c *Client) Kernel(ctx context.Context, n string) (*api.Kernel, error) {
	return do[api.Kernel](ctx, c, get(name("kernels", n)))
}

// AddKernel adds a kernel from files of the daemon's host.
func (c *Client) AddKernel(ctx context.Context, k api.KernelAdd) (*api.Kernel, error) {
	return do[api.Kernel](ctx, c, request{method: http.MethodPost, path: "/kernels", body: k})
}

// ImportKernel sends a .deb package, or a kernel without modules. Of k it
// takes name, kind and whether it becomes the default one.
func (c *Client) ImportKernel(ctx context.Context, k api.KernelAdd, file io.Reader) (*api.Kernel, error) {
	r := request{method: http.MethodPost, path: "/kernels/import", raw: file, rawType: "application/octet-stream", query: url.Values{}}
	for key, v := range map[string]string{"name": k.Name, "kind": string(k.Kind)} {
		if v != "" {
			r.query.Set(key, v)
		}
	}
	if k.Default {
		r.query.Set("default", "true")
	}
	return do[api.Kernel](ctx, c, r)
}

// FetchKernel has the daemon fetch a distribution's kernel package.
func (c *Client) FetchKernel(ctx context.Context, k api.KernelFetch) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: "/kernels/fetch", body: k})
}

// SetDefaultKernel makes a kernel the default one of its kind and
// architecture.
func (c *Client) SetDefaultKernel(ctx context.Context, n string) (*api.Kernel, error) {
	return do[api.Kernel](ctx, c, request{method: http.MethodPost, path: name("kernels", n) + "/default"})
}

// DeleteKernel deletes a kernel that no instance needs.
func (c *Client) DeleteKernel(ctx context.Context, n string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: name("kernels", n)})
}
