package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/cleave-project/cleave/api"
)

func (s *Server) hostRoutes() {
	const tag = "host"
	handle(s, route(tag, "get-host", http.MethodGet, "/v1/host", "Show the daemon and its host"),
		func(context.Context, *Hostwide) (*plain[api.HostInfo], error) {
			info := s.backend.Info()
			return plainOf(&info, nil)
		})
	op := route(tag, "get-doctor", http.MethodGet, "/v1/host/doctor", "Find out what this host can do")
	op.Description = "What each capability needs, whether it is there, and what would change that."
	handle(s, op, func(ctx context.Context, _ *Hostwide) (*page[api.Finding], error) {
		found := s.backend.Doctor(ctx)
		if found == nil {
			found = []api.Finding{}
		}
		return &page[api.Finding]{Body: api.List[api.Finding]{Items: found}}, nil
	})
}

// health is what /healthz answers.
type health struct {
	Status     string            `json:"status"` // ok, or failing
	Version    string            `json:"version"`
	Subsystems map[string]string `json:"subsystems"` // ok, or what is wrong
}

// handleHealth answers 200 when every subsystem is well, and else 503.
func (s *Server) handleHealth(w http.ResponseWriter, r *http.Request) {
	h := health{Status: "ok", Version: s.version, Subsystems: map[string]string{"api": "ok"}}
	status := http.StatusOK
	if s.health != nil {
		for name, err := range s.health(r.Context()) {
			h.Subsystems[name] = "ok"
			if err != nil {
				h.Subsystems[name], h.Status, status = err.Error(), "failing", http.StatusServiceUnavailable
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(h)
}
