package client

import (
	"context"
	"io"
	"net/url"
)

// ExportInstance streams the disk of a stopped system of its own as "qcow2",
// "raw" or "ova"; empty for qcow2. The caller closes the stream.
func (c *Client) ExportInstance(ctx context.Context, n, format string) (io.ReadCloser, error) {
	r := get(name("instances", n) + "/export")
	if format != "" {
		r.query = url.Values{"format": {format}}
	}
	resp, err := c.open(ctx, r)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
