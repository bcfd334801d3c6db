// Package reference reads image names as Docker users write them: debian,
// debian:bookworm, quay.io/x/y@sha256:..., localhost:5000/a/b:tag. The
// grammar is that of the distribution project's reference package.
package reference

import (
	"net"
	"regexp"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/api"
)

// Names that a short reference is completed with.
const (
	DefaultRegistry  = "docker.io"
	defaultNamespace = "library"
	defaultTag       = "latest"
)

// Ref is a complete reference: Tag or Digest is set, or both.
type Ref struct {
	Registry   string // host, with port if not the default
	Repository string
	Tag        string
	Digest     string // sha256:...
}

// The parts of a reference (OCI distribution-spec, "Pulling manifests").
var (
	repoRE   = lazy(`^` + component + `(?:/` + component + `)*$`)
	tagRE    = lazy(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	digestRE = lazy(`^sha256:[a-f0-9]{64}$`)
	hostRE   = lazy(`^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?$`)
	prefixRE = lazy(`^(?:sha256:)?([a-f0-9]{6,64})$`)
)

const component = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`

// lazy compiles a pattern at its first use: together they take half a
// millisecond, which no command that names no image should pay.
func lazy(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// maxName is the longest registry and repository together.
const maxName = 255

// Parse reads a reference and completes it.
func Parse(s string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, api.Errorf(api.CodeInvalid, "%.100q is no image name: %s", s, why).
			WithHint("write it like debian:bookworm or registry.example.com/team/app:1.2")
	}
	var r Ref
	rest, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if !digestRE().MatchString(digest) {
			return bad("the digest is not sha256 and 64 hexadecimal digits")
		}
		r.Digest = digest
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.Contains(rest[i:], "/") {
		r.Tag, rest = rest[i+1:], rest[:i]
		if !tagRE().MatchString(r.Tag) {
			return bad("the tag may have letters, digits, '_', '.' and '-', at most 128")
		}
	}
	r.Registry, r.Repository = splitHost(rest)
	switch {
	case !hostRE().MatchString(r.Registry):
		return bad("the registry's name is malformed")
	case !repoRE().MatchString(r.Repository):
		return bad("a repository has lower-case letters, digits and single separators")
	case len(r.Registry)+1+len(r.Repository) > maxName:
		return bad("it is too long")
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = defaultTag
	}
	return r, nil
}

// splitHost separates the registry: a first part with a dot, a colon or an
// upper-case letter, or localhost.
func splitHost(s string) (host, repo string) {
	first, rest, ok := strings.Cut(s, "/")
	if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" && strings.ToLower(first) == first {
		host, repo = DefaultRegistry, s
	} else {
		host, repo = first, rest
	}
	if host == "index.docker.io" {
		host = DefaultRegistry
	}
	if host == DefaultRegistry && !strings.Contains(repo, "/") {
		repo = defaultNamespace + "/" + repo
	}
	return host, repo
}

// Name is the registry and the repository.
func (r Ref) Name() string { return r.Registry + "/" + r.Repository }

// String is the complete form; with a digest the tag has no meaning and is
// left out.
func (r Ref) String() string {
	if r.Digest != "" {
		return r.Name() + "@" + r.Digest
	}
	return r.Name() + ":" + r.Tag
}

// Loopback tells whether the registry is this host by its very name.
func (r Ref) Loopback() bool {
	host := r.Registry
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// DigestPrefix returns the hexadecimal part of a digest or of the beginning
// of one.
func DigestPrefix(s string) (string, bool) {
	m := prefixRE().FindStringSubmatch(s)
	if m == nil {
		return "", false
	}
	return m[1], true
}
