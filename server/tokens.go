package server

import (
	"context"
	"net/http"
	"time"

	"github.com/cleave-project/cleave/api"
)

type createToken struct {
	Hostwide
	Unconditional
	Body api.Token
}

type deleteToken struct {
	Hostwide
	Unconditional
	Name string `path:"name" doc:"Name of the token"`
}

func (s *Server) tokenRoutes() {
	const tag = "tokens"
	handle(s, route(tag, "list-tokens", http.MethodGet, "/v1/tokens", "List tokens"),
		func(ctx context.Context, in *listPools) (*page[api.Token], error) {
			all, err := s.backend.Tokens(ctx)
			if err != nil {
				return nil, err
			}
			p, err := pageOf(all, in.Paged, func(t *api.Token) string { return t.Name })
			if err == nil {
				for i := range p.Body.Items {
					p.Body.Items[i].Hash, p.Body.Items[i].Secret = "", ""
				}
			}
			return p, err
		})
	op := created(example(route(tag, "create-token", http.MethodPost, "/v1/tokens", "Create a token"),
		map[string]any{"name": "laptop", "expires": "2027-01-01T00:00:00Z"}))
	op.Description = "The secret is in this answer and never shown again."
	handle(s, op, s.createToken)
	handle(s, route(tag, "delete-token", http.MethodDelete, "/v1/tokens/{name}", "Revoke a token"),
		func(ctx context.Context, in *deleteToken) (*nothing, error) {
			return nil, s.backend.DeleteToken(ctx, in.Name)
		})
}

func (s *Server) createToken(ctx context.Context, in *createToken) (*object[api.Token], error) {
	t := &in.Body
	resetMeta(&t.Meta)
	t.Hash, t.Secret, t.Used = "", "", nil
	if t.Expires != nil && !t.Expires.After(time.Now()) {
		return nil, api.Errorf(api.CodeInvalid, "the token would expire at %s, which is past", t.Expires.Format(time.RFC3339)).WithField("expires")
	}
	made, err := s.backend.CreateToken(ctx, t)
	if err != nil {
		return nil, err
	}
	shown := *made
	shown.Hash = ""
	return objectOf(&shown, nil)
}
