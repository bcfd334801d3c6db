package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"github.com/danielgtaylor/huma/v2"

	"github.com/cleave-project/cleave/api"
)

const pngType = "image/png"

type screenshot struct {
	InstanceName
	Last bool `query:"last" doc:"The picture that was kept when its firmware found nothing to boot"`
}

type picture struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func (s *Server) screenRoutes() {
	const tag = "guests"
	shot := route(tag, "get-screenshot", http.MethodGet, "/v1/instances/{name}/screenshot", "See what a machine's screen shows")
	shot.Responses = map[string]*huma.Response{"200": {Description: "The screen", Content: binaryBody(pngType)}}
	handle(s, shot, func(ctx context.Context, in *screenshot) (*picture, error) {
		p, err := in.project()
		if err != nil {
			return nil, err
		}
		look := s.backend.Screenshot
		if in.Last {
			look = s.backend.LastScreen
		}
		png, err := look(ctx, p, in.Name)
		return &picture{ContentType: pngType, Body: png}, err
	})
	vnc := route(tag, "open-screen", http.MethodPost, "/v1/instances/{name}/vnc", "Prepare to see and use a machine's screen")
	vnc.Description = "The stream carries the protocol of VNC (RFC 6143) as it is, in binary messages without channels, as viewers in browsers expect it."
	handle(s, vnc, s.openScreen)
}

type openScreen struct {
	InstanceName
	Unconditional
}

func (s *Server) openScreen(ctx context.Context, in *openScreen) (*plain[api.Ticket], error) {
	p, err := in.project()
	if err != nil {
		return nil, err
	}
	// Why there is none is told now: the protocol of the stream has no words
	// for it.
	conn, err := s.backend.VNC(ctx, p, in.Name)
	if err != nil {
		return nil, err
	}
	_ = conn.Close()
	return plainOf(s.tickets.issueRaw(callOf(ctx).caller.kind, func(ctx context.Context) (net.Conn, error) {
		return s.backend.VNC(ctx, p, in.Name)
	}))
}

// serveRaw passes bytes on both ways until one side has enough.
func (s *Server) serveRaw(ctx context.Context, ws *websocket.Conn, open func(ctx context.Context) (net.Conn, error)) {
	begin, done := context.WithTimeout(ctx, s.begin)
	guest, err := open(begin)
	done()
	if err != nil {
		_ = ws.Close(websocket.StatusInternalError, clipped(problemOf(err).Detail))
		return
	}
	defer guest.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go s.pingRaw(ctx, cancel, ws)
	client := websocket.NetConn(ctx, ws, websocket.MessageBinary)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		defer guest.Close()
		_, _ = io.CopyBuffer(onlyWriter{guest}, onlyReader{client}, make([]byte, pieceSize))
	}()
	_, _ = io.CopyBuffer(onlyWriter{client}, onlyReader{guest}, make([]byte, pieceSize))
	_ = ws.Close(websocket.StatusNormalClosure, "")
	cancel()
	<-copied
}

// onlyWriter hides ReadFrom, so that io.CopyBuffer uses the buffer.
type onlyWriter struct{ io.Writer }

// pingRaw ends a stream whose client is gone without a word.
func (s *Server) pingRaw(ctx context.Context, cancel context.CancelFunc, ws *websocket.Conn) {
	tick := time.NewTicker(s.heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if ws.Ping(ctx) != nil {
			cancel()
			return
		}
	}
}

// clipped fits a text into a close frame (RFC 6455 §5.5: 125 bytes with the
// status).
func clipped(text string) string {
	const most = 123
	if len(text) <= most {
		return text
	}
	return text[:most]
}
