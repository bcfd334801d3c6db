package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"

	"github.com/cleave-project/cleave/api"
)

// Host returns the daemon's version and identity.
func (c *Client) Host(ctx context.Context) (*api.HostInfo, error) {
	return do[api.HostInfo](ctx, c, get("/host"))
}

// Doctor returns what the host can do and can't.
func (c *Client) Doctor(ctx context.Context) ([]api.Finding, error) {
	l, err := do[api.List[api.Finding]](ctx, c, get("/host/doctor"))
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// Images lists the images on the host.
func (c *Client) Images(ctx context.Context) iter.Seq2[api.Image, error] {
	return pages[api.Image](ctx, c, "/images", nil)
}

// Image returns an image by reference or digest.
func (c *Client) Image(ctx context.Context, ref string) (*api.Image, error) {
	return do[api.Image](ctx, c, request{method: http.MethodGet, path: "/image", query: url.Values{"ref": {ref}}})
}

// PullImage fetches an image from a registry.
func (c *Client) PullImage(ctx context.Context, p api.ImagePull) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: "/images/pull", body: p})
}

// BuildImage makes an image with the host's bootstrap tool.
func (c *Client) BuildImage(ctx context.Context, b api.ImageBuild) (*api.Operation, error) {
	return do[api.Operation](ctx, c, request{method: http.MethodPost, path: "/images/build", body: b})
}

// ImportImage makes an image of an archive: an OCI layout, a docker-save
// archive or a root file system; or of a disk or medium. They may be
// compressed. An empty name keeps the archive's own, an empty format has a
// disk's found out.
func (c *Client) ImportImage(ctx context.Context, name, format string, archive io.Reader) (*api.Image, error) {
	r := request{method: http.MethodPost, path: "/images/import", raw: archive, rawType: "application/octet-stream", query: url.Values{}}
	if name != "" {
		r.query.Set("name", name)
	}
	if format != "" {
		r.query.Set("format", format)
	}
	return do[api.Image](ctx, c, r)
}

// ExportImage streams an image as "oci" (layout) or "tar" (root file
// system), a disk as "qcow2", "raw" or "ova". An empty format is the first
// that fits. The caller closes the stream.
func (c *Client) ExportImage(ctx context.Context, ref, format string) (io.ReadCloser, error) {
	q := url.Values{"ref": {ref}}
	if format != "" {
		q.Set("format", format)
	}
	resp, err := c.open(ctx, request{method: http.MethodGet, path: "/image/export", query: q})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// DeleteImage deletes an image, or only the name when others remain.
func (c *Client) DeleteImage(ctx context.Context, ref string, force bool) error {
	q := url.Values{"ref": {ref}}
	if force {
		q.Set("force", "true")
	}
	return c.call(ctx, request{method: http.MethodDelete, path: "/image", query: q})
}

// Pruned is what a prune removed.
type Pruned struct {
	Freed   api.Bytes `json:"freed"`
	Digests []string  `json:"digests"`
}

// PruneImages deletes what no instance and no name needs.
func (c *Client) PruneImages(ctx context.Context) (*Pruned, error) {
	return do[Pruned](ctx, c, request{method: http.MethodPost, path: "/images/prune"})
}

// Pools lists the storage pools of the host.
func (c *Client) Pools(ctx context.Context) iter.Seq2[api.Pool, error] {
	return pages[api.Pool](ctx, c, "/pools", nil)
}

// Pool returns one pool.
func (c *Client) Pool(ctx context.Context, n string) (*api.Pool, error) {
	return do[api.Pool](ctx, c, get(name("pools", n)))
}

// CreatePool makes a pool.
func (c *Client) CreatePool(ctx context.Context, p *api.Pool) (*api.Pool, error) {
	return do[api.Pool](ctx, c, request{method: http.MethodPost, path: "/pools", body: p})
}

// DeletePool deletes an empty pool.
func (c *Client) DeletePool(ctx context.Context, n string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: name("pools", n)})
}

// Volumes lists the project's volumes.
func (c *Client) Volumes(ctx context.Context) iter.Seq2[api.Volume, error] {
	return pages[api.Volume](ctx, c, "/volumes", nil)
}

// Volume returns one volume.
func (c *Client) Volume(ctx context.Context, n string) (*api.Volume, error) {
	return do[api.Volume](ctx, c, get(name("volumes", n)))
}

// CreateVolume makes a volume.
func (c *Client) CreateVolume(ctx context.Context, v *api.Volume) (*api.Volume, error) {
	return do[api.Volume](ctx, c, request{method: http.MethodPost, path: "/volumes", body: v})
}

// PatchVolume applies a JSON merge patch of labels and spec.
func (c *Client) PatchVolume(ctx context.Context, n string, revision int64, patch any) (*api.Volume, error) {
	return do[api.Volume](ctx, c, request{method: http.MethodPatch, path: name("volumes", n), body: patch, revision: revision})
}

// DeleteVolume deletes a volume that no instance uses.
func (c *Client) DeleteVolume(ctx context.Context, n string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: name("volumes", n)})
}

// Networks lists the project's networks.
func (c *Client) Networks(ctx context.Context) iter.Seq2[api.Network, error] {
	return pages[api.Network](ctx, c, "/networks", nil)
}

// Network returns one network.
func (c *Client) Network(ctx context.Context, n string) (*api.Network, error) {
	return do[api.Network](ctx, c, get(name("networks", n)))
}

// CreateNetwork makes a network.
func (c *Client) CreateNetwork(ctx context.Context, n *api.Network) (*api.Network, error) {
	return do[api.Network](ctx, c, request{method: http.MethodPost, path: "/networks", body: n})
}

// PatchNetwork applies a JSON merge patch of labels and spec.
func (c *Client) PatchNetwork(ctx context.Context, n string, revision int64, patch any) (*api.Network, error) {
	return do[api.Network](ctx, c, request{method: http.MethodPatch, path: name("networks", n), body: patch, revision: revision})
}

// DeleteNetwork deletes a network that no instance uses.
func (c *Client) DeleteNetwork(ctx context.Context, n string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: name("networks", n)})
}

// Tokens lists the tokens for access over TCP, without their secrets.
func (c *Client) Tokens(ctx context.Context) iter.Seq2[api.Token, error] {
	return pages[api.Token](ctx, c, "/tokens", nil)
}

// CreateToken makes a token; only this answer carries the secret.
func (c *Client) CreateToken(ctx context.Context, t *api.Token) (*api.Token, error) {
	return do[api.Token](ctx, c, request{method: http.MethodPost, path: "/tokens", body: t})
}

// DeleteToken revokes a token.
func (c *Client) DeleteToken(ctx context.Context, n string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: name("tokens", n)})
}
