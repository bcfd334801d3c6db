package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/agent"
)

const (
	statHeader = "X-Cleave-Stat"
	tarType    = "application/x-tar"
)

// FilePath names a file in a guest.
type FilePath struct {
	InstanceName
	Path string `query:"path" required:"true" doc:"Path in the guest" example:"/etc/hosts"`
}

type putFiles struct {
	FilePath
	Unconditional
	Upload upload
}

type fileStat struct {
	Stat string `header:"X-Cleave-Stat" doc:"What the path is: a FileInfo as JSON in base64"`
}

// upload is the body of a request that may have any length.
type upload struct{ body io.Reader }

// Resolve implements huma.Resolver: it takes hold of the body.
func (u *upload) Resolve(ctx huma.Context) []error {
	u.body = ctx.BodyReader()
	return nil
}

// binaryBody describes a body that is streamed.
func binaryBody(contentType string) map[string]*huma.MediaType {
	return map[string]*huma.MediaType{contentType: {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}}
}

func (s *Server) fileRoutes() {
	const tag, path = "guests", "/v1/instances/{name}/files"
	get := route(tag, "get-files", http.MethodGet, path, "Read files of a guest")
	get.Description = "A tar archive of the path, a directory with all that is below. The guest made it: trust nothing in it. If reading fails on the way the connection is cut."
	stat := &huma.Header{Description: "What the path is: a FileInfo as JSON in base64", Schema: &huma.Schema{Type: huma.TypeString}}
	get.Responses = map[string]*huma.Response{"200": {
		Description: "The archive", Content: binaryBody(tarType),
		Headers: map[string]*huma.Param{statHeader: stat},
	}}
	handle(s, get, s.getFiles)
	handle(s, route(tag, "stat-file", http.MethodHead, path, "Look at a file of a guest"), s.statFile)
	put := route(tag, "put-files", http.MethodPut, path, "Write files into a guest")
	put.Description = "Extracts a tar archive below the directory path, inside the guest and with the guest's own rights."
	put.RequestBody = &huma.RequestBody{Required: true, Content: binaryBody(tarType)}
	handle(s, put, s.putFiles)
}

// withAgent calls fn with an agent's connection, which ends with ctx.
func (s *Server) withAgent(ctx context.Context, in InstanceName, fn func(c *agent.Client) error) error {
	p, err := in.project()
	if err != nil {
		return err
	}
	c, err := s.backend.Agent(ctx, p, in.Name)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	return fn(c)
}

func (s *Server) statFile(ctx context.Context, in *FilePath) (out *fileStat, err error) {
	err = s.withAgent(ctx, in.InstanceName, func(c *agent.Client) error {
		text, err := stat(ctx, c, in.Path)
		out = &fileStat{Stat: text}
		return err
	})
	return out, err
}

func stat(ctx context.Context, c *agent.Client, path string) (string, error) {
	info, err := c.Stat(ctx, path)
	if err != nil {
		return "", err
	}
	p, err := json.Marshal(info)
	return base64.StdEncoding.EncodeToString(p), err
}

func (s *Server) getFiles(_ context.Context, in *FilePath) (*stream, error) {
	return &stream{Body: func(hc huma.Context) {
		r, w := unwrap(hc)
		ctx := r.Context()
		out := newDownload(s, w, tarType)
		out.finish("files of "+in.Name, s.withAgent(ctx, in.InstanceName, func(c *agent.Client) error {
			text, err := stat(ctx, c, in.Path)
			if err != nil {
				return err
			}
			w.Header().Set(statHeader, text)
			tar, err := c.Get(ctx, in.Path)
			if err != nil {
				return err
			}
			defer tar.Close()
			_, err = io.CopyBuffer(out, onlyReader{tar}, make([]byte, pieceSize))
			return err
		}))
	}}, nil
}

func (s *Server) putFiles(ctx context.Context, in *putFiles) (*nothing, error) {
	return nil, s.withAgent(ctx, in.InstanceName, func(c *agent.Client) error {
		return c.Put(ctx, in.Path, in.Upload.body)
	})
}

// download is an answer that is streamed. Until its first bytes have gone out
// a failure is still an answer of its own.
type download struct {
	s           *Server
	w           http.ResponseWriter
	contentType string
	held        []byte // the beginning, until committed
	committed   bool
}

func newDownload(s *Server, w http.ResponseWriter, contentType string) *download {
	return &download{s: s, w: w, contentType: contentType}
}

func (d *download) Write(p []byte) (int, error) {
	if !d.committed {
		if len(d.held)+len(p) <= pieceSize {
			d.held = append(d.held, p...)
			return len(p), nil
		}
		if err := d.commit(); err != nil {
			return 0, err
		}
	}
	return d.w.Write(p)
}

func (d *download) commit() error {
	d.committed = true
	d.w.Header().Set("Content-Type", d.contentType)
	d.w.WriteHeader(http.StatusOK)
	_, err := d.w.Write(d.held)
	d.held = nil
	return err
}

// finish ends the answer: whole, or as a failure that the client notices.
func (d *download) finish(what string, err error) {
	switch {
	case err != nil && d.committed:
		d.s.aborted(what, err)
	case err != nil:
		d.w.Header().Del(statHeader)
		problemOf(err).write(d.w)
	case !d.committed:
		_ = d.commit()
	}
}
