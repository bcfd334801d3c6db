package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// pageSize is how many items a listing asks for at once: few round trips,
// yet a page is a fraction of a megabyte.
const pageSize = 500

// request is one call; zero fields are left out.
type request struct {
	method   string
	path     string // below /v1, escaped
	query    url.Values
	body     any       // sent as JSON
	raw      io.Reader // sent as it is, instead of body
	rawType  string
	revision int64  // If-Match
	prefer   string // Prefer
	lastID   string // Last-Event-ID
}

// open performs r and returns the answer when its status is a success. The
// caller closes the body.
func (c *Client) open(ctx context.Context, r request) (*http.Response, error) {
	body := r.raw
	contentType := r.rawType
	if r.body != nil {
		p, err := json.Marshal(r.body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		body, contentType = bytes.NewReader(p), "application/json"
	}
	u := c.base
	u.Path, _ = url.PathUnescape("/v1" + r.path)
	u.RawPath = "/v1" + r.path
	if r.query == nil {
		r.query = url.Values{}
	}
	if !r.query.Has("project") {
		r.query.Set("project", c.project)
	}
	u.RawQuery = r.query.Encode()
	req, err := http.NewRequestWithContext(ctx, r.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	c.header(req.Header)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.revision != 0 {
		req.Header.Set("If-Match", `"`+strconv.FormatInt(r.revision, 10)+`"`)
	}
	if r.prefer != "" {
		req.Header.Set("Prefer", r.prefer)
	}
	if r.lastID != "" {
		req.Header.Set("Last-Event-ID", r.lastID)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, problem(resp)
}

func (c *Client) header(h http.Header) {
	h.Set("User-Agent", "cleave")
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
}

// problem makes an error of an answer (RFC 9457); one that isn't a problem
// document keeps its status and the beginning of its text.
func problem(resp *http.Response) error {
	p, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var e api.Error
	if json.Unmarshal(p, &e) == nil && e.Code != "" {
		return &e
	}
	text := strings.TrimSpace(string(p[:min(len(p), 200)]))
	if text == "" {
		text = "no explanation"
	}
	return api.Errorf(codeOf(resp.StatusCode), "the daemon answered %s: %s", resp.Status, text)
}

func codeOf(status int) api.Code {
	switch {
	case status == http.StatusUnauthorized:
		return api.CodeUnauthorized
	case status == http.StatusForbidden:
		return api.CodeForbidden
	case status == http.StatusNotFound:
		return api.CodeNotFound
	case status == http.StatusConflict, status == http.StatusPreconditionFailed:
		return api.CodeConflict
	case status == http.StatusServiceUnavailable, status == http.StatusBadGateway:
		return api.CodeUnavailable
	case status >= 400 && status < 500:
		return api.CodeInvalid
	}
	return api.CodeInternal
}

// do performs r and decodes the answer into a T.
func do[T any](ctx context.Context, c *Client, r request) (*T, error) {
	resp, err := c.open(ctx, r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := new(T)
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, api.Errorf(api.CodeUnavailable, "reading the daemon's answer to %s %s: %w", r.method, r.path, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // so that the connection is used again
	return out, nil
}

// call performs r and drops the answer.
func (c *Client) call(ctx context.Context, r request) error {
	resp, err := c.open(ctx, r)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

// pages walks a listing. The error comes once, as the last pair.
func pages[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q := url.Values{}
		for k, v := range query {
			q[k] = v
		}
		q.Set("limit", strconv.Itoa(pageSize))
		for {
			page, err := do[api.List[T]](ctx, c, request{method: http.MethodGet, path: path, query: q})
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.Set("cursor", page.Next)
		}
	}
}

// Collect gathers a listing; it stops at the first error.
func Collect[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var all []T
	for item, err := range seq {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

func get(path string) request { return request{method: http.MethodGet, path: path} }

func name(collection, name string) string { return "/" + collection + "/" + url.PathEscape(name) }
