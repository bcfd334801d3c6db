package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

// serve starts a daemon of the test's on a unix socket.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "clv") // short: sun_path holds 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listen(t, socket, h)
	c, err := New(Options{Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func listen(t *testing.T, socket string, h http.HandlerFunc) *http.Server {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return srv
}

func TestListingsFetchPageAfterPage(t *testing.T) {
	var asked []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("cursor"))
		page := api.List[api.Volume]{Items: []api.Volume{{Meta: api.Meta{Name: fmt.Sprint("v", len(asked))}}}}
		if len(asked) < 3 {
			page.Next = fmt.Sprint("after", len(asked))
		}
		json.NewEncoder(w).Encode(page)
	})
	all, err := Collect(c.Volumes(t.Context()))
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	if diff := cmp.Diff([]string{"", "after1", "after2"}, asked); diff != "" {
		t.Error(diff)
	}
	asked = nil
	for range c.Volumes(t.Context()) {
		break
	}
	if len(asked) != 1 {
		t.Errorf("%d pages for one item", len(asked))
	}
}

func TestRequestsCarryProjectRevisionAndEscapedNames(t *testing.T) {
	var got *http.Request
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		io.WriteString(w, "{}")
	})
	if _, err := c.InProject("p").PatchInstance(t.Context(), "a/b?c", 42, map[string]any{"labels": nil}); err != nil {
		t.Fatal(err)
	}
	if got.URL.EscapedPath() != "/v1/instances/a%2Fb%3Fc" || got.URL.Query().Get("project") != "p" || got.Header.Get("If-Match") != `"42"` {
		t.Errorf("%s %s %s", got.URL.EscapedPath(), got.URL.RawQuery, got.Header.Get("If-Match"))
	}
}

func TestProblemsBecomeErrors(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		code   api.Code
		text   string
	}{
		{409, `{"title":"Conflict","status":409,"code":"exists","detail":"taken","hint":"choose","field":"name"}`, api.CodeExists, "taken; choose"},
		{500, "panic", api.CodeInternal, "500 Internal Server Error: panic"},
		{404, "", api.CodeNotFound, "404 Not Found: no explanation"},
		{502, "<html>proxy</html>", api.CodeUnavailable, "proxy"},
		{412, "{}", api.CodeConflict, "412"},
		{418, "tea", api.CodeInvalid, "tea"},
		{200, "not JSON", api.CodeUnavailable, "reading the daemon's answer"},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(tt.status)
			io.WriteString(w, tt.body)
		})
		_, err := c.Host(t.Context())
		if !api.IsCode(err, tt.code) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%d %q: %v", tt.status, tt.body, err)
		}
	}
}

func TestADaemonThatCantBeReachedIsExplained(t *testing.T) {
	file := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o    Options
		code api.Code
		text string
	}{
		{Options{Socket: "/nonexistent/s"}, api.CodeUnavailable, "does not answer at /nonexistent/s: no such file"},
		{Options{Socket: file}, api.CodeUnavailable, "connection refused"},
		{Options{Host: "https://127.0.0.1:1"}, api.CodeUnavailable, "connecting to https://127.0.0.1:1: connection refused"},
	} {
		c, err := New(tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.Host(t.Context()); !api.IsCode(err, tt.code) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%+v: %v", tt.o, err)
		}
	}
	for _, o := range []Options{{Host: "example.org"}, {Host: "ftp://x"}, {Host: "https://x", CAFile: file}, {Host: "https://x", CAFile: "/nonexistent"}} {
		if _, err := New(o); !api.IsCode(err, api.CodeInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestTLSIsVerifiedAndTheTokenSent(t *testing.T) {
	var auth string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		auth = r.Header.Get("Authorization")
		io.WriteString(w, `{"version":"1"}`)
	}))
	defer srv.Close()
	srv.Config.ErrorLog = nil
	c, err := New(Options{Host: srv.URL, Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Host(t.Context()); !api.IsCode(err, api.CodeUnauthorized) || auth != "" {
		t.Errorf("a stranger's certificate: %v, sent %q", err, auth)
	}
	c.http.Transport = srv.Client().Transport
	if h, err := c.Host(t.Context()); err != nil || h.Version != "1" || auth != "Bearer secret" {
		t.Errorf("%v %v %q", h, err, auth)
	}
}

func TestWaitReportsProgressAndTheEnd(t *testing.T) {
	var polls atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := polls.Add(1)
		op := api.Operation{Meta: api.Meta{ID: "x"}, State: api.OperationRunning, Done: int64(n), Changes: int64(n)}
		switch {
		case n == 1: // nothing but the end is asked for
			<-r.Context().Done()
			return
		case n == 4:
			op.State = api.OperationDone
		}
		json.NewEncoder(w).Encode(op)
	})
	var seen []int64
	op, err := c.Wait(t.Context(), &api.Operation{Meta: api.Meta{ID: "x"}}, func(o *api.Operation) { seen = append(seen, o.Done) })
	if err != nil || op.State != api.OperationDone {
		t.Fatal(op, err)
	}
	if diff := cmp.Diff([]int64{0, 2, 3}, seen); diff != "" {
		t.Error(diff)
	}
}

func TestWaitOutlivesTheDaemon(t *testing.T) {
	dir, err := os.MkdirTemp("", "clv")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	asked := make(chan struct{}, 100)
	first := listen(t, socket, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})
	c, _ := New(Options{Socket: socket})
	defer c.Close()
	done := make(chan struct{})
	defer func() { <-done }()
	go func() {
		defer close(done)
		<-asked
		first.Close()
		time.Sleep(300 * time.Millisecond) // there is no daemon for a while
		os.Remove(socket)
		listen(t, socket, func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(api.Operation{Meta: api.Meta{ID: "x"}, State: api.OperationFailed, Error: api.Errorf(api.CodeNoSpace, "full")})
		})
	}()
	op, err := c.Wait(t.Context(), &api.Operation{Meta: api.Meta{ID: "x"}}, nil)
	if !api.IsCode(err, api.CodeNoSpace) || op.State != api.OperationFailed {
		t.Errorf("%+v %v", op, err)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for _, after := range []time.Duration{50 * time.Millisecond, 500 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		op, err := c.Wait(ctx, &api.Operation{Meta: api.Meta{ID: "x"}}, nil)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || op == nil {
			t.Errorf("after %v: %v %v", after, op, err)
		}
	}
}

func TestEventsGoOnAfterABreak(t *testing.T) {
	var last []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		last = append(last, r.Header.Get("Last-Event-ID")+"|"+r.URL.Query().Get("since"))
		n := len(last)
		fmt.Fprintf(w, "retry: 1\n\n: comment\n\nid: %d\ndata: {\"id\":%d,\ndata: \"type\":\"x\"}\n\nid: 99\ndata: {\"id\":99", n, n)
	})
	var ids []int64
	for e, err := range c.Events(t.Context(), EventOptions{Since: "10m"}) {
		if err != nil {
			t.Fatal(err)
		}
		if ids = append(ids, e.ID); len(ids) == 3 {
			break
		}
	}
	if diff := cmp.Diff([]int64{1, 2, 3}, ids); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"|10m", "1|", "2|"}, last); diff != "" {
		t.Error(diff)
	}
}

func TestEventsOfAnAbsentDaemonAreAnError(t *testing.T) {
	c, _ := New(Options{Socket: "/nonexistent/s"})
	for _, err := range c.Events(t.Context(), EventOptions{}) {
		if !api.IsCode(err, api.CodeUnavailable) {
			t.Error(err)
		}
		return
	}
	t.Error("nothing came")
}

// streamServer answers a ticket and then talks on its stream.
func streamServer(t *testing.T, talk func(context.Context, *websocket.Conn)) *Client {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			json.NewEncoder(w).Encode(api.Ticket{URL: "/v1/streams/t"})
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		talk(r.Context(), conn)
	})
}

func TestSessionsOfADishonestOrDyingDaemon(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  string // sent before the connection ends
		code api.Code
		text string
	}{
		{"breaks off", "\x01out", api.CodeUnavailable, "broke off"},
		{"an empty message", "", api.CodeInternal, "empty message"},
		{"bad control", "\x03{", api.CodeInternal, "can't be read"},
		{"an error", `` + "\x03" + `{"error":{"code":"no-space","detail":"full"}}`, api.CodeNoSpace, "full"},
		{"an unknown channel, then the end", "\x09x", api.CodeUnavailable, "broke off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := streamServer(t, func(ctx context.Context, conn *websocket.Conn) {
				conn.Write(ctx, websocket.MessageBinary, []byte(tt.msg))
			})
			s, err := c.Exec(t.Context(), "web", api.ExecRequest{Command: []string{"x"}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Run(t.Context(), Streams{}); !api.IsCode(err, tt.code) || !strings.Contains(err.Error(), tt.text) {
				t.Error(err)
			}
		})
	}
}

func TestDetachLeavesTheCommand(t *testing.T) {
	gone := make(chan error, 1)
	c := streamServer(t, func(ctx context.Context, conn *websocket.Conn) {
		for {
			if _, _, err := conn.Read(ctx); err != nil {
				gone <- err
				return
			}
		}
	})
	s, err := c.Console(t.Context(), "web", api.ConsoleRequest{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	stdin := io.MultiReader(strings.NewReader("some input"), detaching{})
	if _, err := s.Run(t.Context(), Streams{Stdin: stdin}); !errors.Is(err, ErrDetached) {
		t.Error(err)
	}
	if err := <-gone; websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Error(err)
	}
}

type detaching struct{}

func (detaching) Read([]byte) (int, error) { return 0, ErrDetached }

func FuzzReadEvents(f *testing.F) {
	f.Add("id: 1\ndata: {\"id\":1}\n\n")
	f.Add(":\n\ndata\n\ndata:x\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		readEvents(strings.NewReader(text), func(e api.Event) bool {
			if e.ID == 0 {
				t.Error("an event without an id")
			}
			return true
		})
	})
}
