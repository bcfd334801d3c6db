package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

const (
	streamPrefix  = "/v1/streams/"
	streamPattern = "GET " + streamPrefix + "{ticket}"
)

type openStream struct {
	Hostwide
	Ticket string `path:"ticket" doc:"The ticket"`
}

func (s *Server) streamRoutes() {
	op := route("guests", "open-stream", http.MethodGet, streamPrefix+"{ticket}", "Open a stream (WebSocket)")
	op.Description = "See the introduction for the messages. The ticket is the credential: no token is needed beside it."
	op.Responses = map[string]*huma.Response{"101": {Description: "The stream is open"}}
	op.DefaultStatus = http.StatusSwitchingProtocols
	handle(s, op, s.openStream)
}

func (s *Server) openStream(ctx context.Context, in *openStream) (*stream, error) {
	tk, err := s.tickets.use(in.Ticket, callOf(ctx).caller.kind)
	if err != nil {
		return nil, err
	}
	return &stream{Body: func(hc huma.Context) {
		r, w := unwrap(hc)
		s.serveStream(w, r, tk)
	}}, nil
}

// serveStream upgrades the connection and holds it until the session ends.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request, tk ticket) {
	// Where the request came from has been checked already. Compression
	// would cost more than any link to a guest does.
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxMessage)
	ctx, cancel := untilStop(context.WithoutCancel(r.Context()))
	defer cancel()
	if tk.raw != nil {
		s.serveRaw(ctx, conn, tk.raw)
		return
	}
	begun, err := tk.begin(ctx)
	if err != nil {
		finish(ctx, conn, final{Error: problemOf(err).apiError()})
		return
	}
	b := &bridge{conn: conn, session: begun, ping: s.heartbeat, tcp: callOf(r.Context()).caller.kind != callerUnix}
	if err := b.run(ctx); err != nil {
		s.log.Debug("stream ended early", "error", err)
	}
}

// final is the last control message of a stream.
type final struct {
	Exit  *api.ExitStatus `json:"exit,omitempty"`
	Error *api.Error      `json:"error,omitempty"`
}

// finish sends the last message and closes.
func finish(ctx context.Context, conn *websocket.Conn, f final) {
	p, err := json.Marshal(f)
	if err != nil {
		return
	}
	if conn.Write(ctx, websocket.MessageBinary, append([]byte{channelControl}, p...)) == nil {
		_ = conn.Close(websocket.StatusNormalClosure, "")
	}
}

// apiError is the problem without what only HTTP needs.
func (p *Problem) apiError() *api.Error {
	return &api.Error{Code: p.Code, Field: p.Field, Message: p.Detail, Hint: p.Hint}
}
