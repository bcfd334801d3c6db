package registry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/reference"
)

type answers func(*http.Request) (*http.Response, error)

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r) }

func TestGuardKeepsPlainHTTPToWhereItIsAllowed(t *testing.T) {
	for _, c := range []struct {
		registry string
		plain    bool
		url      string
		ok       bool
	}{
		{"reg.example.com", false, "https://reg.example.com/v2/", true},
		{"reg.example.com", false, "http://reg.example.com/v2/", false},
		{"reg.example.com", true, "http://reg.example.com/v2/", true},
		{"reg.example.com", true, "http://token.example.com/", false},
		{"10.0.0.1:5000", false, "http://10.0.0.1:5000/v2/", false},
		{"reg.example.com", false, "http://127.0.0.1:80/", false}, // a redirect into this host
		{"reg.example.com", true, "http://169.254.169.254/", false},
		{"127.0.0.1:5000", false, "http://127.0.0.1:5000/v2/", true},
		{"localhost:5000", false, "http://127.0.0.1:6000/token", true},
		{"localhost:5000", false, "http://example.com/", false},
		{"[::1]:5000", false, "http://[::1]:5000/v2/", true},
	} {
		g := &guard{loopback: reference.Ref{Registry: c.registry}.Loopback(), inner: answers(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
		})}
		if c.plain {
			g.plainHost = c.registry
		}
		u, err := url.Parse(c.url)
		if err != nil {
			t.Fatal(err)
		}
		_, err = g.RoundTrip(&http.Request{URL: u})
		if (err == nil) != c.ok {
			t.Errorf("%s of %s (plain %v): %v", c.url, c.registry, c.plain, err)
		}
	}
}

func TestErrorsHaveTheirCodes(t *testing.T) {
	ref := reference.Ref{Registry: "reg.example.com", Repository: "a/b", Tag: "1"}
	status := func(n int) error { return &transport.Error{StatusCode: n} }
	for _, c := range []struct {
		err       error
		code      api.Code
		transient bool
	}{
		{status(404), api.CodeNotFound, false},
		{status(401), api.CodeUnauthorized, false},
		{status(403), api.CodeUnauthorized, false},
		{status(429), api.CodeUnavailable, true},
		{status(500), api.CodeUnavailable, true},
		{status(503), api.CodeUnavailable, true},
		{&net.DNSError{IsNotFound: true, Name: "reg.example.com"}, api.CodeUnavailable, false},
		{&net.DNSError{IsTemporary: true}, api.CodeUnavailable, true},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, api.CodeUnavailable, false},
		{&net.OpError{Op: "read", Err: syscall.ECONNRESET}, api.CodeUnavailable, true},
		{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, api.CodeUnavailable, false},
		{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}, api.CodeUnavailable, true},
		{io.ErrUnexpectedEOF, api.CodeUnavailable, true},
		{&url.Error{Op: "Get", Err: errPlain}, api.CodeForbidden, false},
	} {
		if got := api.AsError(explain(ref, c.err)); got.Code != c.code || got.Hint == "" && c.code != api.CodeUnavailable {
			t.Errorf("%v: %+v", c.err, got)
		}
		if Transient(c.err) != c.transient {
			t.Errorf("%v: transient is %v", c.err, !c.transient)
		}
	}
	if err := explain(ref, context.Canceled); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestUnknownHostIsSaidSo(t *testing.T) {
	p := NewPool("/nonexistent")
	p.base.DialContext = func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "reg.invalid", IsNotFound: true}
	}
	ref, err := reference.Parse("reg.invalid/a:1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Open(t.Context(), ref, Options{})
	if !api.IsCode(err, api.CodeUnavailable) || !strings.Contains(err.Error(), "no such host") {
		t.Error(err)
	}
}
