package server

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/control"
)

func (s *Server) routes() {
	s.instanceRoutes()
	s.deviceRoutes()
	s.guestRoutes()
	s.fileRoutes()
	s.logRoutes()
	s.streamRoutes()
	s.screenRoutes()
	s.exportRoutes()
	s.imageRoutes()
	s.kernelRoutes()
	s.poolRoutes()
	s.volumeRoutes()
	s.networkRoutes()
	s.operationRoutes()
	s.eventRoutes()
	s.tokenRoutes()
	s.hostRoutes()
	s.mux.HandleFunc("GET /openapi.json", s.handleOpenAPI())
	s.mux.HandleFunc("GET /healthz", s.handleHealth)
	s.mux.Handle("GET /metrics", s.metrics.handler())
}

// route begins the description of an operation.
func route(tag, id, method, path, summary string) huma.Operation {
	return huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, Tags: []string{tag}, MaxBodyBytes: maxJSON}
}

// schemaOf puts a type into the document and returns a reference to it.
func schemaOf[T any](s *Server) *huma.Schema {
	return s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[T](), true, "")
}

// example puts an example of the JSON body into the document.
func example(op huma.Operation, v any) huma.Operation {
	op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{"application/json": {Example: v}}}
	return op
}

// handle registers one operation. What fn fails with is sent as a problem.
func handle[I, O any](s *Server, op huma.Operation, fn func(ctx context.Context, in *I) (*O, error)) {
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	op.BodyReadTimeout = s.body
	problem := schemaOf[Problem](s)
	op.Responses["default"] = &huma.Response{
		Description: "It failed",
		Content:     map[string]*huma.MediaType{problemType: {Schema: problem}},
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		if w := callOf(ctx).w; w != nil && op.RequestBody != nil {
			// The deadline was for the body; the work may take longer.
			_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		}
		if k, ok := any(in).(interface{ idempotencyKey() string }); ok && k.idempotencyKey() != "" {
			ctx = control.WithIdempotencyKey(ctx, k.idempotencyKey())
		}
		out, err := fn(ctx, in)
		if err != nil {
			p := problemOf(err)
			if p.Code == api.CodeInternal {
				s.log.Error("request failed", "operation", op.OperationID, "error", err)
			}
			return nil, p
		}
		return out, nil
	})
}

// Scoped are the requests about what belongs to a project.
type Scoped struct {
	Project string `query:"project" doc:"Project; \"default\" if left out"`
}

// project is the one project that a request is about.
func (s Scoped) project() (string, error) {
	if s.Project == allProjects {
		return "", api.Errorf(api.CodeInvalid, "one project must be named here, not %q", allProjects).WithField("project")
	}
	if s.Project == "" {
		return api.DefaultProject, nil
	}
	return s.Project, nil
}

// allProjects stands for all projects in a listing.
const allProjects = "*"

// Listed are listings of what belongs to a project.
type Listed struct {
	Project string `query:"project" doc:"Project; \"default\" if left out, * for all"`
}

// project is the project of a listing, empty for all.
func (l Listed) project() string {
	switch l.Project {
	case "":
		return api.DefaultProject
	case allProjects:
		return ""
	}
	return l.Project
}

// Hostwide are the requests about what belongs to no project. A client may
// send its project with each of its requests all the same.
type Hostwide struct {
	Project string `query:"project" hidden:"true"`
}

// Mutation are the requests that start an operation.
type Mutation struct {
	Keyed
	Unconditional
}

// Keyed are the requests that may be repeated safely.
type Keyed struct {
	IdempotencyKey string `header:"Idempotency-Key" maxLength:"255" doc:"Any text, unique to this call: repeating it does nothing new"`
}

func (k Keyed) idempotencyKey() string { return k.IdempotencyKey }

// Unconditional are the mutations that can't honour If-Match, which must not
// be ignored (RFC 9110 §13.1.1).
type Unconditional struct{}

// Resolve implements huma.Resolver.
func (*Unconditional) Resolve(ctx huma.Context) []error {
	if ctx.Header("If-Match") == "" {
		return nil
	}
	return []error{problemOf(api.Errorf(api.CodeUnsupported, "this request can't be made conditional with If-Match").WithField("If-Match"))}
}

// Conditional are the mutations that honour If-Match.
type Conditional struct {
	IfMatch string `header:"If-Match" doc:"ETag of the object: fail with status 412 when it has changed since" example:"\"42\""`
}

// revision reads If-Match (RFC 9110 §13.1.1); 0 is any. A weak tag never
// matches, and several can't be honoured.
func (c Conditional) revision() (int64, error) {
	if c.IfMatch == "" || c.IfMatch == "*" {
		return 0, nil
	}
	text, ok := strings.CutPrefix(c.IfMatch, `"`)
	text, ok2 := strings.CutSuffix(text, `"`)
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || !ok2 || err != nil || n <= 0 {
		return 0, api.Errorf(api.CodeInvalid, "If-Match must be one ETag of this API, like \"42\", and not %s", c.IfMatch).WithField("If-Match")
	}
	return n, nil
}

// precondition turns the conflict that a stale revision is into status 412.
// current is asked for the revision of now.
func precondition(err error, revision int64, current func() (int64, error)) error {
	if revision == 0 || !api.IsCode(err, api.CodeConflict) {
		return err
	}
	if now, lookErr := current(); lookErr != nil || now == revision {
		return err // the revision isn't what is wrong
	}
	return withStatus(api.AsError(err), http.StatusPreconditionFailed)
}

func etag(revision int64) string { return fmt.Sprintf("%q", strconv.FormatInt(revision, 10)) }

// object is an answer that is one resource.
type object[T any] struct {
	ETag string `header:"ETag" doc:"Revision, for If-Match"`
	Body *T
}

func objectOf[T any](o *T, err error) (*object[T], error) {
	if err != nil {
		return nil, err
	}
	out := &object[T]{Body: o}
	if r, ok := any(o).(api.Object); ok && r.GetMeta().Revision > 0 {
		out.ETag = etag(r.GetMeta().Revision)
	}
	return out, nil
}

// plain is an answer without a revision.
type plain[T any] struct{ Body *T }

func plainOf[T any](v *T, err error) (*plain[T], error) {
	if err != nil {
		return nil, err
	}
	return &plain[T]{Body: v}, nil
}

type nothing struct{}

// unwrap reaches below huma for what it has no words for.
func unwrap(ctx huma.Context) (*http.Request, http.ResponseWriter) { return humago.Unwrap(ctx) }

// adopt settles the project of a resource that is about to be made, and drops
// what only the server may set.
func adopt(m *api.Meta, s Scoped) error {
	switch {
	case m.Project == "" || m.Project == s.Project:
		p, err := s.project()
		if err != nil {
			return err
		}
		m.Project = p
	case s.Project != "":
		return api.Errorf(api.CodeInvalid, "the resource says project %q and the query %q", m.Project, s.Project).WithField("project")
	}
	resetMeta(m)
	return nil
}

func resetMeta(m *api.Meta) {
	m.ID, m.Revision, m.Created, m.Deleting = "", 0, time.Time{}, nil
}
