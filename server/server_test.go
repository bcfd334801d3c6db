package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// harness is a server on a unix socket and a client for it.
type harness struct {
	*testing.T
	s      *Server
	socket string
	client *http.Client
	base   string
	header http.Header
	stop   context.CancelFunc
	done   chan error
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func start(t testing.TB, b Backend, adjust ...func(*timeouts)) *harness {
	t.Helper()
	limits := defaultTimeouts
	for _, a := range adjust {
		a(&limits)
	}
	return startWith(t, Options{Backend: b, Version: "1.2.3", Log: quiet()}, limits)
}

func startWith(t testing.TB, o Options, limits timeouts) *harness {
	t.Helper()
	h := &harness{s: newServer(o, limits), socket: filepath.Join(t.TempDir(), "s"), base: "http://cleave", header: http.Header{}}
	h.T, _ = t.(*testing.T)
	l, err := ListenUnix(h.socket, "")
	if err != nil {
		t.Fatal(err)
	}
	h.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.socket)
	}}}
	h.serve(t, l, Access{Peer: true})
	return h
}

// patience ends a test that hangs; it says nothing of how fast a machine is.
const patience = 2 * time.Minute

// startTCP is the same over TCP on loopback, with a good token.
func startTCP(t testing.TB, b Backend) *harness {
	t.Helper()
	l, err := ListenTCP("127.0.0.1:0", "", "")
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{s: New(Options{Backend: b, Log: quiet()}), base: "http://" + l.Addr().String(), header: http.Header{}, client: &http.Client{Transport: &http.Transport{}}}
	h.T, _ = t.(*testing.T)
	h.header.Set("Authorization", "Bearer "+goodToken)
	h.serve(t, l, Access{})
	return h
}

func (h *harness) serve(t testing.TB, l net.Listener, a Access) {
	ctx, cancel := context.WithCancel(context.Background())
	h.stop, h.done = cancel, make(chan error, 1)
	go func() { h.done <- h.s.Serve(ctx, l, a) }()
	t.Cleanup(func() {
		h.client.CloseIdleConnections()
		cancel()
		select {
		case err := <-h.done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve does not end")
		}
	})
}

// ended waits for Serve, and leaves its result for the cleanup.
func (h *harness) ended() {
	h.Helper()
	select {
	case err := <-h.done:
		h.done <- err
	case <-time.After(patience):
		h.Fatal("Serve does not end")
	}
}

func (h *harness) request(method, path, body string, header ...string) *http.Request {
	req, err := http.NewRequest(method, h.base+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	req.Header = h.header.Clone()
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	return req
}

// do sends a request and reads the whole answer.
func (h *harness) do(method, path, body string, header ...string) (*http.Response, string) {
	h.Helper()
	resp, err := h.client.Do(h.request(method, path, body, header...))
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	return resp, string(p)
}

// fails sends a request and returns the problem that it is answered with.
func (h *harness) fails(method, path, body string, header ...string) Problem {
	h.Helper()
	resp, text := h.do(method, path, body, header...)
	var p Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		h.Fatalf("%s %s: %s is no problem: %s", method, path, resp.Status, text)
	}
	if got := resp.Header.Get("Content-Type"); got != problemType {
		h.Errorf("content type is %q", got)
	}
	if p.Status != resp.StatusCode || p.Title != http.StatusText(p.Status) || p.Type != "about:blank" {
		h.Errorf("problem %+v does not fit status %d", p, resp.StatusCode)
	}
	return p
}

func decode[T any](t testing.TB, text string) T {
	t.Helper()
	var v T
	if err := json.NewDecoder(bytes.NewBufferString(text)).Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func TestServesObjectsWithTheirRevision(t *testing.T) {
	f := newFake()
	f.add("default", "web", 42)
	h := start(t, f)
	resp, text := h.do("GET", "/v1/instances/web", "")
	if resp.StatusCode != 200 || resp.Header.Get("ETag") != `"42"` {
		t.Errorf("got %s with ETag %s", resp.Status, resp.Header.Get("ETag"))
	}
	if in := decode[api.Instance](t, text); in.Name != "web" {
		t.Errorf("got %s", text)
	}
	if strings.Contains(text, "$schema") {
		t.Errorf("answers carry a schema link: %s", text)
	}
}

func TestFailuresAreProblems(t *testing.T) {
	h := start(t, newFake())
	for _, tc := range []struct {
		name, method, path, body string
		status                   int
		code                     api.Code
		field                    string
	}{
		{"missing object", "GET", "/v1/instances/none", "", 404, api.CodeNotFound, ""},
		{"missing route", "GET", "/v1/nothing", "", 404, api.CodeNotFound, ""},
		{"wrong method", "PUT", "/v1/instances", "", 405, api.CodeInvalid, ""},
		{"unknown parameter", "GET", "/v1/instances?labels=a", "", 400, api.CodeInvalid, "labels"},
		{"bad parameter", "GET", "/v1/instances?limit=-1", "", 400, api.CodeInvalid, "limit"},
		{"bad phase", "GET", "/v1/instances?phase=odd", "", 400, api.CodeInvalid, "phase"},
		{"bad label", "GET", "/v1/instances?label=a", "", 400, api.CodeInvalid, "label"},
		{"bad cursor", "GET", "/v1/images?cursor=*", "", 400, api.CodeInvalid, "cursor"},
		{"no body", "POST", "/v1/instances", "", 400, api.CodeInvalid, ""},
		{"no JSON", "POST", "/v1/instances", "{", 400, api.CodeInvalid, ""},
		{"unknown field", "POST", "/v1/instances", `{"name":"a","spec":{"image":"base","memory":1}}`, 400, api.CodeInvalid, "spec.memory"},
		{"other case", "POST", "/v1/instances", `{"name":"a","spec":{"Image":"base"}}`, 400, api.CodeInvalid, "spec.Image"},
		{"wrong type", "POST", "/v1/instances", `{"name":"a","spec":{"image":"base","resources":{"cpus":"x"}}}`, 400, api.CodeInvalid, "spec.resources.cpus"},
		{"bad size", "POST", "/v1/instances", `{"name":"a","spec":{"image":"base","resources":{"memory":"many"}}}`, 400, api.CodeInvalid, "spec.resources.memory"},
		{"same name twice", "POST", "/v1/instances", `{"name":"a","name":"b","spec":{"image":"base"}}`, 400, api.CodeInvalid, ""},
		{"unknown format", "POST", "/v1/images/pull", `reference=a`, 400, api.CodeInvalid, ""},
		{"two projects", "GET", "/v1/instances/web?project=*", "", 400, api.CodeInvalid, "project"},
		{"project twice", "POST", "/v1/instances?project=a", `{"name":"a","project":"b","spec":{"image":"base"}}`, 400, api.CodeInvalid, "project"},
		{"bad since", "GET", "/v1/events?since=tomorrow", "", 400, api.CodeInvalid, "since"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := *h
			h.T = t
			p := h.fails(tc.method, tc.path, tc.body, "Content-Type", "application/json")
			if p.Status != tc.status || p.Code != tc.code || p.Field != tc.field {
				t.Errorf("got %d %s at %q (%s), want %d %s at %q", p.Status, p.Code, p.Field, p.Detail, tc.status, tc.code, tc.field)
			}
		})
	}
}

func TestEveryFieldAtFaultIsNamed(t *testing.T) {
	h := start(t, newFake())
	p := h.fails("POST", "/v1/instances", `{"name":"a","spec":{"image":"base","odd":1,"resources":{"cpus":-1}}}`)
	var got []string
	for _, e := range p.Errors {
		got = append(got, e.Field)
	}
	if text := strings.Join(got, " "); !strings.Contains(text, "spec.odd") || !strings.Contains(text, "spec.resources.cpus") {
		t.Errorf("got %q", text)
	}
	if !strings.Contains(p.Detail, "1 more") {
		t.Errorf("detail %q does not say that there is more", p.Detail)
	}
}

func TestPasswordsAreNotEchoed(t *testing.T) {
	h := start(t, newFake())
	p := h.fails("POST", "/v1/images/pull", `{"reference":"a","auth":{"password":["hunter2"]}}`)
	if text, _ := json.Marshal(p); strings.Contains(string(text), "hunter2") {
		t.Errorf("the answer holds the password: %s", text)
	}
}

func TestOversizeBodyIsRefused(t *testing.T) {
	h := start(t, newFake())
	body := `{"name":"` + strings.Repeat("a", maxJSON) + `","spec":{"image":"base"}}`
	if p := h.fails("POST", "/v1/instances", body); p.Status != 413 || p.Code != api.CodeInvalid {
		t.Errorf("got %d %s", p.Status, p.Code)
	}
}

func TestOversizeHeaderIsRefused(t *testing.T) {
	h := start(t, newFake())
	resp, _ := h.do("GET", "/v1/host", "", "X-Big", strings.Repeat("a", 2*maxHeader))
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %s", resp.Status)
	}
}

func TestSizesAreNumbersOrText(t *testing.T) {
	f := newFake()
	h := start(t, f)
	for _, size := range []string{`1048576`, `"512MiB"`, `"1.5 GB"`} {
		resp, text := h.do("POST", "/v1/instances", `{"name":"a","spec":{"image":"base","resources":{"memory":`+size+`}}}`)
		if resp.StatusCode != http.StatusAccepted {
			t.Errorf("%s: %s %s", size, resp.Status, text)
		}
	}
}

func TestReadOnlyFieldsOfInputAreDropped(t *testing.T) {
	f := newFake()
	h := start(t, f)
	resp, text := h.do("POST", "/v1/tokens", `{"name":"a","id":"x","hash":"mine","secret":"mine"}`)
	tok := decode[api.Token](t, text)
	if resp.StatusCode != http.StatusCreated || tok.Secret != "secret" || tok.Hash != "" || tok.ID != "" {
		t.Errorf("got %s %s", resp.Status, text)
	}
	if _, text := h.do("GET", "/v1/tokens", ""); strings.Contains(text, "hash") {
		t.Errorf("the listing shows hashes: %s", text)
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	h := start(t, newFake()) // Volumes is left to the nil interface
	if p := h.fails("GET", "/v1/volumes", ""); p.Status != 500 || p.Code != api.CodeInternal {
		t.Errorf("got %d %s", p.Status, p.Code)
	}
}

func TestUnexpectedErrorsAreNotLost(t *testing.T) {
	f := newFake()
	f.failWith = io.ErrUnexpectedEOF
	h := start(t, f)
	if p := h.fails("POST", "/v1/instances/web/start", ""); p.Status != 500 || !strings.Contains(p.Detail, "unexpected EOF") {
		t.Errorf("got %+v", p)
	}
}
