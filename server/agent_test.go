package server

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/api"
)

// asAgent is set in the environment of the child that is a guest's agent.
const asAgent = "CLEAVE_TEST_AGENT"

func runAgent() int {
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err == nil {
		err = guest.Serve(l)
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// guestBackend is a backend whose one guest is this machine: its agent is a
// process beside the test.
type guestBackend struct {
	*fake
	socket string
}

func startGuest(t testing.TB) *guestBackend {
	t.Helper()
	b := &guestBackend{fake: newFake(), socket: filepath.Join(t.TempDir(), "agent")}
	b.add("default", "web", 1)
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asAgent + "=1", "PATH=/usr/bin:/bin"}
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return b
}

func (b *guestBackend) Agent(ctx context.Context, _, _ string) (*agent.Client, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
	if err != nil {
		return nil, api.Errorf(api.CodeConflict, "the guest does not run: %w", err)
	}
	return agent.Dial(ctx, c)
}

// exec opens a stream to a command as a client does.
func (h *harness) exec(t testing.TB, req api.ExecRequest) *websocket.Conn {
	t.Helper()
	body, _ := json.Marshal(req)
	resp, err := h.client.Post(h.base+"/v1/instances/web/exec", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, _ := io.ReadAll(resp.Body)
	c, _, err := websocket.Dial(context.Background(), h.base+decode[api.Ticket](t, string(p)).URL, &websocket.DialOptions{HTTPClient: h.client})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(-1)
	t.Cleanup(func() { c.CloseNow() })
	return c
}

// drain reads a stream to its last message, which it returns with the bytes
// of standard output and standard error.
func drain(t testing.TB, c *websocket.Conn, out io.Writer) (stderr, last string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	buf := make([]byte, 64<<10)
	for {
		_, r, err := c.Reader(ctx)
		if err != nil {
			t.Fatalf("after %q: %v", last, err)
		}
		n, err := io.ReadAtLeast(r, buf, 1)
		if err != nil {
			t.Fatal(err)
		}
		rest := io.MultiReader(bytes.NewReader(buf[1:n]), r)
		switch buf[0] {
		case channelStdout:
			if _, err = out.Write(buf[1:n]); err == nil {
				_, err = io.Copy(out, r)
			}
		case channelStderr:
			p, _ := io.ReadAll(rest)
			stderr += string(p)
		case channelControl:
			p, _ := io.ReadAll(rest)
			return stderr, string(p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestExecReachesTheGuest(t *testing.T) {
	h := start(t, startGuest(t))
	var out strings.Builder
	c := h.exec(t, api.ExecRequest{Command: []string{"sh", "-c", "cat; echo err >&2; exit 7"}, Stdin: true})
	h.say(c, channelStdin, "hello")
	h.say(c, channelControl, `{"eof":true}`)
	if stderr, last := drain(t, c, &out); out.String() != "hello" || stderr != "err\n" || last != `{"exit":{"code":7}}` {
		t.Errorf("got %q, %q, %s", out.String(), stderr, last)
	}
}

func TestExecWithoutInputGetsNone(t *testing.T) {
	h := start(t, startGuest(t))
	c := h.exec(t, api.ExecRequest{Command: []string{"cat"}})
	if _, last := drain(t, c, io.Discard); last != `{"exit":{"code":0}}` {
		t.Errorf("got %s", last)
	}
}

func TestExecTakesSignalsAndATerminal(t *testing.T) {
	h := start(t, startGuest(t))
	c := h.exec(t, api.ExecRequest{Command: []string{"sleep", "60"}})
	h.say(c, channelControl, `{"signal":"SIGTERM"}`)
	if _, last := drain(t, c, io.Discard); last != `{"exit":{"code":143}}` {
		t.Errorf("got %s", last)
	}
	var out strings.Builder
	c = h.exec(t, api.ExecRequest{Command: []string{"sh", "-c", "read x; stty size"}, TTY: true, Stdin: true, Cols: 80, Rows: 24})
	h.say(c, channelControl, `{"resize":{"cols":100,"rows":40}}`)
	h.say(c, channelStdin, "go\n")
	if _, last := drain(t, c, &out); !strings.Contains(out.String(), "40 100") {
		t.Errorf("got %q, %s", out.String(), last)
	}
}

func TestExecTellsWhatCannotBeExecuted(t *testing.T) {
	h := start(t, startGuest(t))
	c := h.exec(t, api.ExecRequest{Command: []string{"no-such-command"}})
	_, last := drain(t, c, io.Discard)
	if !strings.Contains(last, `"code":"not-found"`) || !strings.Contains(last, `"field":"command"`) {
		t.Errorf("got %s", last)
	}
}

// A guest's root can stop its agent (ptrace, SIGSTOP to a system guest's).
func TestExecGivesUpAGuestThatDoesNotAnswer(t *testing.T) {
	b := &guestBackend{fake: newFake(), socket: filepath.Join(t.TempDir(), "agent")}
	b.add("default", "web", 1)
	l, err := net.Listen("unix", b.socket) // whose backlog takes connections
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := start(t, b, func(t *timeouts) { t.begin = 100 * time.Millisecond })
	c := h.exec(t, api.ExecRequest{Command: []string{"true"}})
	if _, last := drain(t, c, io.Discard); !strings.Contains(last, `"code":"timeout"`) {
		t.Errorf("got %s", last)
	}
}

func TestFilesGoBothWays(t *testing.T) {
	h := start(t, startGuest(t))
	dir := t.TempDir()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := w.WriteHeader(&tar.Header{Name: "f", Mode: 0o640, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	w.Write(content)
	w.Close()
	path := "/v1/instances/web/files?path="
	if resp, text := h.do("PUT", path+dir, archive.String()); resp.StatusCode != http.StatusNoContent {
		t.Fatalf("got %s %s", resp.Status, text)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	resp, text := h.do("GET", path+dir+"/f", "")
	r := tar.NewReader(strings.NewReader(text))
	hdr, err := r.Next()
	if err != nil || hdr.Name != "f" || resp.Header.Get("Content-Type") != tarType {
		t.Fatalf("got %s, %+v, %v", resp.Status, hdr, err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	for _, method := range []string{"GET", "HEAD"} {
		resp, _ := h.do(method, path+dir+"/f", "")
		p, _ := base64.StdEncoding.DecodeString(resp.Header.Get(statHeader))
		if fi := decode[api.FileInfo](t, string(p)); fi.Size != int64(len(content)) || fi.Name != "f" {
			t.Errorf("%s: stat is %s", method, p)
		}
	}
	if p := h.fails("GET", path+dir+"/none", ""); p.Status != 404 {
		t.Errorf("a missing file: %+v", p)
	}
	if p := h.fails("PUT", path+dir, "this is no archive"); p.Status >= 500 {
		t.Errorf("a bad archive: %+v", p)
	}
	if p := h.fails("GET", "/v1/instances/web/files", ""); p.Field != "path" {
		t.Errorf("no path: %+v", p)
	}
}

// BenchmarkExecThroughput is a pipe through a command in a guest, both ways
// at once: client, server, agent and command share the machine.
func BenchmarkExecThroughput(b *testing.B) {
	h := start(b, startGuest(b))
	const size = 100 << 20
	piece := append([]byte{channelStdin}, make([]byte, 64<<10)...)
	b.SetBytes(size)
	for b.Loop() {
		c := h.exec(b, api.ExecRequest{Command: []string{"cat"}, Stdin: true})
		go func() {
			for range size / (64 << 10) {
				if c.Write(context.Background(), websocket.MessageBinary, piece) != nil {
					return
				}
			}
			_ = c.Write(context.Background(), websocket.MessageBinary, []byte("\x03{\"eof\":true}"))
		}()
		var n counter
		if _, last := drain(b, c, &n); n != size || last != `{"exit":{"code":0}}` {
			b.Fatalf("%d bytes came back, %s", n, last)
		}
	}
}

// BenchmarkExecTrue is the shortest command, from the request for a ticket to
// the exit status.
func BenchmarkExecTrue(b *testing.B) {
	h := start(b, startGuest(b))
	for b.Loop() {
		c := h.exec(b, api.ExecRequest{Command: []string{"true"}})
		drain(b, c, io.Discard)
		c.CloseNow()
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
