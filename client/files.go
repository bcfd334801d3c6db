package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"github.com/cleave-project/cleave/api"
)

// statHeader carries an api.FileInfo as base64 of JSON.
const statHeader = "X-Cleave-Stat"

func (c *Client) files(method, n, path string) request {
	return request{method: method, path: name("instances", n) + "/files", query: url.Values{"path": {path}}}
}

// Stat describes a file in a guest, without following a symbolic link.
func (c *Client) Stat(ctx context.Context, n, path string) (*api.FileInfo, error) {
	resp, err := c.open(ctx, c.files(http.MethodHead, n, path))
	if err != nil {
		// An answer to HEAD has no body that could say more.
		if api.IsCode(err, api.CodeNotFound) {
			return nil, api.Errorf(api.CodeNotFound, "%s:%s: no such file, or no such running instance", n, path)
		}
		return nil, err
	}
	resp.Body.Close()
	p, err := base64.StdEncoding.DecodeString(resp.Header.Get(statHeader))
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "reading the description of %s:%s: %w", n, path, err)
	}
	var fi api.FileInfo
	if err := json.Unmarshal(p, &fi); err != nil {
		return nil, api.Errorf(api.CodeInternal, "reading the description of %s:%s: %w", n, path, err)
	}
	return &fi, nil
}

// Get streams a file or directory of a guest as a tar archive. The guest
// wrote it: nothing in it may be trusted. The caller closes it.
func (c *Client) Get(ctx context.Context, n, path string) (io.ReadCloser, error) {
	resp, err := c.open(ctx, c.files(http.MethodGet, n, path))
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Put extracts a tar archive below the directory path of a guest.
func (c *Client) Put(ctx context.Context, n, path string, tar io.Reader) error {
	r := c.files(http.MethodPut, n, path)
	r.raw, r.rawType = tar, "application/x-tar"
	return c.call(ctx, r)
}
