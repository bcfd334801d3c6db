package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/transfer"
	"github.com/coder/websocket"
)

// fake is a daemon whose guests are processes and directories of the test.
type fake struct {
	t      testing.TB
	socket string
	root   string // the guests' file system

	mu        sync.Mutex
	requests  []string // METHOD PATH?QUERY BODY
	instances []api.Instance
	volumes   []api.Volume
	networks  []api.Network
	images    []api.Image
	kernels   []api.Kernel
	stats     []api.Stats
	logs      []string
	events    []api.Event
	ops       map[string]*api.Operation
	tickets   map[string]api.ExecRequest
	// operation, if set, decides how operations begin.
	operation func(*api.Operation)
	// hold, if set, is called where an exec hangs.
	hold func()
	// seen, if set, is told what a command has written so far, at each write.
	seen func(string)
}

// epoch is now for the tests.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newFake(t testing.TB) *fake {
	t.Helper()
	// A short path: sun_path holds 108 bytes.
	dir, err := os.MkdirTemp("", "clvcli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fake{t: t, socket: filepath.Join(dir, "s"), root: t.TempDir(), ops: map[string]*api.Operation{}, tickets: map[string]api.ExecRequest{}}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f.routes()}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return f
}

// cleave runs a command line against the fake.
func (f *fake) cleave(stdin string, args ...string) (status int, stdout, stderr string) {
	f.t.Helper()
	return runSeen(f.t, f.seen, f.socket, strings.NewReader(stdin), args...)
}

func run(t testing.TB, socket string, stdin io.Reader, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return runSeen(t, nil, socket, stdin, args...)
}

// watched tells what has been written to it so far.
type watched struct {
	bytes.Buffer
	seen func(string)
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if w.seen != nil {
		w.seen(w.String())
	}
	return n, err
}

func runSeen(t testing.TB, seen func(string), socket string, stdin io.Reader, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	for _, v := range []string{"CLEAVE_SOCKET", "CLEAVE_HOST", "CLEAVE_PROJECT", "CLEAVE_TOKEN"} {
		t.Setenv(v, "")
	}
	if os.Getenv("DOCKER_CONFIG") == "" {
		t.Setenv("DOCKER_CONFIG", "/nonexistent") // never who runs the tests
	}
	out, errs := watched{seen: seen}, watched{seen: seen}
	a := newApp(stdin, &out, &errs)
	a.now = func() time.Time { return epoch }
	defer a.close()
	args = append([]string{"--socket", socket}, args...)
	root := newRoot(a, args)
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&errs)
	cmd, err := root.ExecuteContextC(context.Background())
	status = a.report(cmd, err)
	return status, out.String(), errs.String()
}

// took returns the requests so far and forgets them.
func (f *fake) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.requests
	f.requests = nil
	return r
}

func (f *fake) routes() http.Handler {
	m := http.NewServeMux()
	m.HandleFunc("GET /v1/instances", func(w http.ResponseWriter, r *http.Request) { list(w, f.instances) })
	m.HandleFunc("POST /v1/instances", f.createInstance)
	m.HandleFunc("GET /v1/instances/{name}", f.getInstance)
	m.HandleFunc("PATCH /v1/instances/{name}", func(w http.ResponseWriter, r *http.Request) { f.begin(w, "instance.update", r.PathValue("name")) })
	m.HandleFunc("DELETE /v1/instances/{name}", func(w http.ResponseWriter, r *http.Request) {
		f.instances = slices.DeleteFunc(f.instances, func(in api.Instance) bool { return in.Name == r.PathValue("name") })
		f.begin(w, "instance.delete", r.PathValue("name"))
	})
	m.HandleFunc("POST /v1/instances/{name}/{action}", f.act)
	m.HandleFunc("GET /v1/streams/{ticket}", f.stream)
	for _, method := range []string{"HEAD", "GET", "PUT"} {
		m.HandleFunc(method+" /v1/instances/{name}/files", f.files)
	}
	m.HandleFunc("GET /v1/instances/{name}/logs", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Join(f.logs, "\n")) })
	m.HandleFunc("GET /v1/stats", func(w http.ResponseWriter, _ *http.Request) { list(w, f.stats) })
	m.HandleFunc("GET /v1/images", func(w http.ResponseWriter, _ *http.Request) { list(w, f.images) })
	m.HandleFunc("GET /v1/image", func(w http.ResponseWriter, r *http.Request) {
		for _, i := range f.images {
			if slices.Contains(i.Names, r.URL.Query().Get("ref")) {
				answer(w, i)
				return
			}
		}
		fail(w, api.Errorf(api.CodeNotFound, "no such image"))
	})
	m.HandleFunc("POST /v1/images/pull", func(w http.ResponseWriter, _ *http.Request) { f.begin(w, "image.pull", "") })
	m.HandleFunc("POST /v1/images/import", func(w http.ResponseWriter, r *http.Request) {
		f.hold()
		answer(w, api.Image{Digest: "sha256:new", Names: []string{r.URL.Query().Get("name")}})
	})
	m.HandleFunc("GET /v1/kernels", func(w http.ResponseWriter, _ *http.Request) { list(w, f.kernels) })
	m.HandleFunc("GET /v1/kernels/{name}", func(w http.ResponseWriter, _ *http.Request) { answer(w, f.kernels[0]) })
	m.HandleFunc("POST /v1/kernels/fetch", func(w http.ResponseWriter, _ *http.Request) { f.begin(w, "kernel.fetch", "debian") })
	for _, path := range []string{"POST /v1/kernels", "POST /v1/kernels/import", "POST /v1/kernels/{name}/default", "DELETE /v1/kernels/{name}"} {
		m.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { answer(w, api.Kernel{Name: "added"}) })
	}
	m.HandleFunc("GET /v1/networks", func(w http.ResponseWriter, _ *http.Request) { list(w, f.networks) })
	m.HandleFunc("POST /v1/networks", func(w http.ResponseWriter, r *http.Request) { post(f, w, r, &f.networks) })
	m.HandleFunc("GET /v1/volumes", func(w http.ResponseWriter, _ *http.Request) { list(w, f.volumes) })
	m.HandleFunc("POST /v1/volumes", func(w http.ResponseWriter, r *http.Request) { post(f, w, r, &f.volumes) })
	m.HandleFunc("GET /v1/operations/{id}", f.waitOperation)
	m.HandleFunc("POST /v1/operations/{id}/cancel", func(w http.ResponseWriter, r *http.Request) {
		op := f.ops[r.PathValue("id")]
		op.State, op.Changes = api.OperationCancelled, op.Changes+1
		answer(w, op)
	})
	m.HandleFunc("GET /v1/events", func(w http.ResponseWriter, _ *http.Request) {
		for _, e := range f.events {
			b, _ := json.Marshal(e)
			fmt.Fprintf(w, ": comment\nid: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Type, b)
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/operations/slow" || strings.HasSuffix(r.URL.Path, "/files") || strings.Contains(r.URL.Path, "/streams/") {
			f.note(r, nil)
			m.ServeHTTP(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		f.note(r, body)
		f.mu.Lock()
		defer f.mu.Unlock()
		m.ServeHTTP(w, r)
	})
}

func (f *fake) note(r *http.Request, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	for _, k := range []string{"project", "limit", "wait", "changes"} {
		q.Del(k)
	}
	line := r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v1")
	if len(q) > 0 {
		line += "?" + q.Encode()
	}
	f.requests = append(f.requests, strings.TrimSpace(line+" "+string(body)))
}

func answer(w http.ResponseWriter, v any) { json.NewEncoder(w).Encode(v) }

func list[T any](w http.ResponseWriter, items []T) { answer(w, api.List[T]{Items: items}) }

func post[T any](f *fake, w http.ResponseWriter, r *http.Request, items *[]T) {
	var v T
	json.NewDecoder(r.Body).Decode(&v)
	*items = append(*items, v)
	answer(w, v)
}

func fail(w http.ResponseWriter, e *api.Error) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(e.Code.Status())
	json.NewEncoder(w).Encode(e)
}

func (f *fake) begin(w http.ResponseWriter, verb, target string) {
	op := &api.Operation{Meta: api.Meta{ID: fmt.Sprintf("op%d", len(f.ops))}, Verb: verb, Target: target, State: api.OperationDone}
	if f.operation != nil {
		f.operation(op)
	}
	f.ops[op.ID] = op
	w.WriteHeader(http.StatusAccepted)
	answer(w, op)
}

func (f *fake) createInstance(w http.ResponseWriter, r *http.Request) {
	var in api.Instance
	json.NewDecoder(r.Body).Decode(&in)
	if slices.ContainsFunc(f.instances, func(o api.Instance) bool { return o.Name == in.Name }) {
		fail(w, api.Errorf(api.CodeExists, "instance %q already exists", in.Name).WithHint("choose another name"))
		return
	}
	in.Spec.Power, in.Status.Phase = api.PowerStopped, api.PhaseStopped
	if r.URL.Query().Get("start") == "true" {
		in.Spec.Power, in.Status.Phase = api.PowerRunning, api.PhaseRunning
	}
	f.instances = append(f.instances, in)
	f.begin(w, "instance.create", in.Name)
}

func (f *fake) getInstance(w http.ResponseWriter, r *http.Request) {
	for _, in := range f.instances {
		if in.Name == r.PathValue("name") {
			answer(w, in)
			return
		}
	}
	fail(w, api.Errorf(api.CodeNotFound, "there is no instance %q", r.PathValue("name")).WithHint("`cleave list` shows them"))
}

func (f *fake) act(w http.ResponseWriter, r *http.Request) {
	action := r.PathValue("action")
	switch action {
	case "exec", "console":
		var req api.ExecRequest
		if action == "exec" {
			json.NewDecoder(r.Body).Decode(&req)
			if f.hold != nil {
				f.hold()
				<-r.Context().Done()
				return
			}
		} else {
			var c api.ConsoleRequest
			json.NewDecoder(r.Body).Decode(&c)
			i := slices.IndexFunc(f.instances, func(in api.Instance) bool { return in.Name == r.PathValue("name") })
			req = api.ExecRequest{Command: f.instances[i].Spec.Command, Stdin: c.Stdin}
		}
		id := fmt.Sprintf("t%d", len(f.tickets))
		f.tickets[id] = req
		answer(w, api.Ticket{Ticket: id, URL: "/v1/streams/" + id})
	default:
		f.begin(w, "instance."+action, r.PathValue("name"))
	}
}

func (f *fake) waitOperation(w http.ResponseWriter, r *http.Request) {
	op := f.ops[r.PathValue("id")]
	for range 100 {
		if op.Finished() || r.URL.Query().Get("changes") == fmt.Sprint(op.Changes-1) {
			break
		}
		f.mu.Unlock()
		time.Sleep(10 * time.Millisecond)
		f.mu.Lock()
		if r.Context().Err() != nil {
			return
		}
	}
	answer(w, op)
}

// stream runs the command of a ticket as a process of the test's.
func (f *fake) stream(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	req := f.tickets[r.PathValue("ticket")]
	f.mu.Unlock()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1)
	ctx := r.Context()
	send := func(channel byte, p []byte) error {
		return conn.Write(ctx, websocket.MessageBinary, append([]byte{channel}, p...))
	}
	cmd := exec.CommandContext(f.t.Context(), req.Command[0], req.Command[1:]...)
	cmd.Env = append(os.Environ(), req.Env...)
	stdin, _ := cmd.StdinPipe()
	cmd.Stdout = writerFunc(func(p []byte) (int, error) { return len(p), send(1, p) })
	cmd.Stderr = writerFunc(func(p []byte) (int, error) { return len(p), send(2, p) })
	if err := cmd.Start(); err != nil {
		b, _ := json.Marshal(map[string]any{"error": api.Errorf(api.CodeNotFound, "starting %s: %w", req.Command[0], err)})
		send(3, b)
		return
	}
	if !req.Stdin {
		stdin.Close()
	}
	go func() {
		for {
			_, p, err := conn.Read(ctx)
			if err != nil {
				return
			}
			var m struct {
				EOF    bool   `json:"eof"`
				Signal string `json:"signal"`
			}
			switch {
			case p[0] == 0:
				stdin.Write(p[1:])
			case json.Unmarshal(p[1:], &m) == nil && m.EOF:
				stdin.Close()
			case m.Signal == "SIGTERM":
				cmd.Process.Signal(syscall.SIGTERM)
			}
		}
	}()
	err = cmd.Wait()
	code := cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if errors.As(err, &exit) && code < 0 {
		code = 128 + int(cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	}
	b, _ := json.Marshal(map[string]any{"exit": map[string]any{"code": code}})
	send(3, b)
	conn.Close(websocket.StatusNormalClosure, "")
}

type writerFunc func([]byte) (int, error)

func (w writerFunc) Write(p []byte) (int, error) { return w(p) }

// files serves the fake's directory as the agent would a guest's.
func (f *fake) files(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("path")
	local := filepath.Join(f.root, name)
	fi, err := os.Lstat(local)
	switch {
	case r.Method == http.MethodPut && (err != nil || !fi.IsDir()):
		io.Copy(io.Discard, r.Body)
		fail(w, api.Errorf(api.CodeNotFound, "copying to %s in the guest: no such directory", name))
	case r.Method == http.MethodPut:
		if err := extract(r.Body, local); err != nil {
			fail(w, api.AsError(err))
		}
	case err != nil:
		fail(w, api.Errorf(api.CodeNotFound, "%s: no such file", name))
	case r.Method == http.MethodHead:
		info := api.FileInfo{Name: fi.Name(), Size: fi.Size(), Mode: uint32(fi.Mode())}
		info.Target, _ = os.Readlink(local)
		b, _ := json.Marshal(info)
		w.Header().Set("X-Cleave-Stat", base64.StdEncoding.EncodeToString(b))
	default:
		top := filepath.Base(name)
		if strings.HasSuffix(name, "/.") {
			top = "."
		}
		transfer.Pack(w, local, top, false)
	}
}

// extract believes the archive, as it is the test's own.
func extract(r io.Reader, dir string) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(to, 0o755); err != nil {
				return err
			}
			continue
		}
		b, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			return err
		}
	}
}
