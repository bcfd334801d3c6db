// Package registry speaks to OCI registries (OCI distribution-spec 1.1):
// manifests whole, blobs as streams that can be taken up again where they
// broke off. What it returns is not verified.
//
// Plain HTTP is spoken to loopback addresses, and elsewhere only when asked
// for; nothing a registry answers (a redirect, a token service) leads to it.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/credentials"
	"github.com/cleave-project/cleave/image/manifest"
	"github.com/cleave-project/cleave/image/reference"
)

// Pool holds the connections to all registries.
type Pool struct {
	base   *http.Transport
	config string // of Docker, with credentials; where Docker looks if empty
}

// NewPool returns a pool that takes credentials from a Docker configuration,
// where Docker looks for it if config is empty. CloseIdle ends the pool.
func NewPool(config string) *Pool {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.ResponseHeaderTimeout = 30 * time.Second
	t.DisableCompression = true // blobs are what their digest says
	t.MaxIdleConnsPerHost = 8
	// A transfer at full speed is copied fewer times with larger reads.
	t.ReadBufferSize = 64 << 10
	return &Pool{base: t, config: config}
}

// CloseIdle closes the connections that nothing uses.
func (p *Pool) CloseIdle() { p.base.CloseIdleConnections() }

// Options say how one registry is spoken to.
type Options struct {
	PlainHTTP bool
	Auth      *api.RegistryAuth // nil: from the Docker configuration
}

// Repository is one repository, with the right to pull from it.
type Repository struct {
	ref    reference.Ref
	client *http.Client
	base   url.URL
}

// Open asks the registry how it wants to be spoken to, and logs in.
func (p *Pool) Open(ctx context.Context, ref reference.Ref, opts Options) (*Repository, error) {
	var regOpts []name.Option
	plain := opts.PlainHTTP || ref.Loopback()
	if plain {
		regOpts = append(regOpts, name.Insecure)
	}
	reg, err := name.NewRegistry(ref.Registry, regOpts...)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "registry %q: %w", ref.Registry, err)
	}
	auth, err := p.authenticator(ctx, ref.Registry, opts.Auth)
	if err != nil {
		return nil, err
	}
	rt := &guard{inner: p.base, loopback: ref.Loopback()}
	if opts.PlainHTTP {
		rt.plainHost = reg.RegistryStr()
	}
	r := &Repository{ref: ref, base: url.URL{Scheme: "https", Host: reg.RegistryStr()}}
	err = retry(ctx, func() error {
		wrapped, err := transport.NewWithContext(ctx, reg, auth, rt, []string{"repository:" + ref.Repository + ":pull"})
		if err == nil {
			r.client = &http.Client{Transport: wrapped}
		}
		return err
	})
	if err != nil {
		return nil, explain(ref, err)
	}
	return r, nil
}

func (p *Pool) authenticator(ctx context.Context, host string, given *api.RegistryAuth) (authn.Authenticator, error) {
	if given == nil {
		found, err := credentials.Find(ctx, p.config, host)
		if err != nil || found == nil {
			return authn.Anonymous, err
		}
		given = found
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: given.Username, Password: given.Password, RegistryToken: given.Token, IdentityToken: given.IdentityToken,
	}), nil
}

// guard refuses plain HTTP, except to the registry itself when asked for, and
// within this host when the registry is on it.
type guard struct {
	inner     http.RoundTripper
	plainHost string
	loopback  bool
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && req.URL.Host != g.plainHost &&
		!(g.loopback && reference.Ref{Registry: req.URL.Host}.Loopback()) {
		return nil, errPlain
	}
	return g.inner.RoundTrip(req)
}

var errPlain = errors.New("plain HTTP is not allowed there")

// acceptManifests is every document that package manifest knows, and those
// that it refuses with a reason.
const acceptManifests = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " +
	"application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, " +
	"application/vnd.docker.distribution.manifest.v1+prettyjws"

// Manifest fetches a manifest or index by tag or digest.
func (r *Repository) Manifest(ctx context.Context, which string) (body []byte, mediaType string, err error) {
	err = retry(ctx, func() error {
		resp, err := r.get(ctx, "manifests", which, http.Header{"Accept": {acceptManifests}}, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		mediaType = resp.Header.Get("Content-Type")
		body, err = readAll(resp.Body, manifest.MaxManifest)
		return err
	})
	if err != nil {
		return nil, "", explain(r.ref, err)
	}
	return body, mediaType, nil
}

// Blob fetches a small blob.
func (r *Repository) Blob(ctx context.Context, d v1.Descriptor, limit int64) (body []byte, err error) {
	err = retry(ctx, func() error {
		resp, err := r.get(ctx, "blobs", d.Digest.String(), nil, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = readAll(resp.Body, min(limit, d.Size))
		return err
	})
	if err != nil {
		return nil, explain(r.ref, err)
	}
	return body, nil
}

// Stream opens a blob at an offset. It is tried once.
func (r *Repository) Stream(ctx context.Context, digest string, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	h, want := http.Header{}, http.StatusOK
	if offset > 0 {
		h.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
		want = http.StatusPartialContent
	}
	resp, err := r.get(ctx, "blobs", digest, h, http.StatusOK, want) //nolint:bodyclose // the stream closes it
	if err != nil {
		cancel()
		return nil, err
	}
	s := newStream(resp.Body, cancel)
	// RFC 9110 §14.2: a server may ignore a range.
	if skip := offset; skip > 0 && resp.StatusCode == http.StatusOK {
		if _, err := io.CopyN(io.Discard, s, skip); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (r *Repository) get(ctx context.Context, kind, which string, h http.Header, ok ...int) (*http.Response, error) {
	u := r.base
	u.Path = fmt.Sprintf("/v2/%s/%s/%s", r.ref.Repository, kind, which)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range h {
		req.Header[k] = v
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, ok...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

func readAll(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(body)) > limit {
		err = api.Errorf(api.CodeCorrupt, "the registry sent more than the %d bytes that were due", limit)
	}
	return body, err
}

// stallTimeout ends a transfer that brings nothing.
const stallTimeout = time.Minute

// stream is a response body that is given up when it stalls.
type stream struct {
	body   io.ReadCloser
	cancel context.CancelFunc
	timer  *time.Timer
	once   sync.Once
}

func newStream(body io.ReadCloser, cancel context.CancelFunc) *stream {
	return &stream{body: body, cancel: cancel, timer: time.AfterFunc(stallTimeout, cancel)}
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	if n > 0 {
		s.timer.Reset(stallTimeout)
	}
	return n, err
}

func (s *stream) Close() error {
	s.once.Do(func() { s.timer.Stop(); s.cancel() })
	return s.body.Close()
}
