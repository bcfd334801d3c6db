package registry

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/reference"
)

// Attempts is how often something is tried that the network may have broken.
const Attempts = 4

// Pause waits before a further attempt: 0.2 s, 0.6 s, 1.8 s, somewhat spread.
func Pause(ctx context.Context, attempt int) error {
	d := 200 * time.Millisecond
	for range attempt {
		d *= 3
	}
	t := time.NewTimer(d + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func retry(ctx context.Context, try func() error) error {
	for attempt := 0; ; attempt++ {
		err := try()
		if err == nil || attempt == Attempts-1 || !Transient(err) || ctx.Err() != nil {
			return err
		}
		if err := Pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// Transient tells whether an error may go away by itself.
func Transient(err error) bool {
	var te *transport.Error
	var ne net.Error
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &te):
		return te.StatusCode == http.StatusTooManyRequests || te.StatusCode == http.StatusRequestTimeout || te.StatusCode >= 500
	case errors.Is(err, errPlain):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary && !dns.IsNotFound
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	case errors.As(err, &op) && op.Op == "dial":
		return false // nobody is there; each further try would take as long
	case errors.As(err, &ne):
		return ne.Timeout()
	}
	return false
}

// Gone tells whether the registry holds less of a blob than it should.
func Gone(err error) bool {
	var te *transport.Error
	return errors.As(err, &te) && te.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// Explain gives an error of Stream its code.
func (r *Repository) Explain(err error) error { return explain(r.ref, err) }

// explain turns what went wrong into what the user can do about it.
func explain(ref reference.Ref, err error) error {
	var coded *api.Error
	var te *transport.Error
	var dns *net.DNSError
	switch {
	case errors.As(err, &coded), errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &te):
		return explainStatus(ref, te)
	case errors.Is(err, errPlain):
		return api.Errorf(api.CodeForbidden, "registry %s: %w", ref.Registry, err).
			WithHint("if that network is to be trusted, ask for plain HTTP")
	case errors.As(err, &dns):
		return api.Errorf(api.CodeUnavailable, "registry %s: no such host: %w", ref.Registry, err).
			WithHint("check the registry's name and this host's DNS")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return api.Errorf(api.CodeUnavailable, "registry %s: the download breaks off again and again: %w", ref.Registry, err).
			WithHint("try again; what has come and was verified is kept")
	}
	return api.Errorf(api.CodeUnavailable, "registry %s: %w", ref.Registry, err).
		WithHint("check that it can be reached from this host")
}

func explainStatus(ref reference.Ref, te *transport.Error) error {
	switch te.StatusCode {
	case http.StatusNotFound:
		if len(te.Errors) > 0 && te.Errors[0].Code == transport.NameUnknownErrorCode {
			return api.Errorf(api.CodeNotFound, "registry %s has no %s: %w", ref.Registry, ref.Repository, te).
				WithHint("check the name")
		}
		return api.Errorf(api.CodeNotFound, "registry %s doesn't have it: %w", ref.Registry, te).
			WithHint("check the name and the tag")
	case http.StatusUnauthorized, http.StatusForbidden:
		return api.Errorf(api.CodeUnauthorized, "registry %s refuses access, or has no such image: %w", ref.Registry, te).
			WithHint("check the name, or log in with docker login %s", ref.Registry)
	case http.StatusTooManyRequests:
		return api.Errorf(api.CodeUnavailable, "registry %s: too many requests: %w", ref.Registry, te).
			WithHint("log in for a higher limit, or try later")
	}
	return api.Errorf(api.CodeUnavailable, "registry %s: %w", ref.Registry, te)
}
