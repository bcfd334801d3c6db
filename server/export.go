package server

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

type exportInstance struct {
	InstanceName
	Format string `query:"format" enum:"qcow2,raw,ova" doc:"qcow2 if left out"`
}

const diskType = "application/octet-stream"

func (s *Server) exportRoutes() {
	exp := route("instances", "export-instance", http.MethodGet, "/v1/instances/{name}/export", "Export the disk of a stopped machine")
	exp.Description = "Of a machine with a system of its own. It can't be started meanwhile. If it fails on the way the connection is cut."
	exp.Responses = map[string]*huma.Response{"200": {Description: "The disk", Content: binaryBody(diskType)}}
	handle(s, exp, s.exportInstance)
}

func (s *Server) exportInstance(_ context.Context, in *exportInstance) (*stream, error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	return &stream{Body: func(hc huma.Context) {
		r, w := unwrap(hc)
		out := newDownload(s, w, diskType)
		out.finish("disk of "+in.Name, s.backend.ExportInstance(r.Context(), p, in.Name, in.Format, out))
	}}, nil
}
