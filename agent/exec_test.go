package agent_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
)

func TestExecKeepsOutputsAndStatusApart(t *testing.T) {
	c := startServe(t).dial(t)
	for _, tc := range []struct {
		name string
		req  agent.ExecRequest
		in   io.Reader
		want result
	}{
		{"nothing", sh("true"), nil, result{}},
		{"both", sh("echo out; echo err >&2; exit 7"), nil, result{"out\n", "err\n", 7}},
		{"stdin", sh("cat; echo end"), strings.NewReader("in"), result{"inend\n", "", 0}},
		{"no stdin", sh("cat; echo end"), nil, result{"end\n", "", 0}},
		{"killed", sh("kill -KILL $$"), nil, result{"", "", 137}},
		{"terminated", sh("kill -TERM $$"), nil, result{"", "", 143}},
		{"env", agent.ExecRequest{Command: []string{"sh", "-c", "echo $A-$B"}, Env: []string{"A=1", "B=2", "A=3"}}, nil, result{"3-2\n", "", 0}},
		{"dir", agent.ExecRequest{Command: []string{"pwd"}, WorkDir: "/usr"}, nil, result{"/usr\n", "", 0}},
		{"stdin unread", sh("exit 3"), strings.NewReader(strings.Repeat("x", 10<<20)), result{"", "", 3}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, command(t, c, tc.req, tc.in), cmp.AllowUnexported(result{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestExecIsBinaryTransparent(t *testing.T) {
	c := startServe(t).dial(t)
	const size = 100 << 20
	sent, got := sha256.New(), sha256.New()
	in := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sent)
	e, err := c.Exec(t.Context(), agent.ExecRequest{Command: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	go func() {
		io.Copy(e.Stdin(), in)
		e.Stdin().Close()
	}()
	n, err := io.Copy(got, e.Stdout())
	if err != nil || n != size {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	if code, err := e.Wait(t.Context()); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	if a, b := hex.EncodeToString(sent.Sum(nil)), hex.EncodeToString(got.Sum(nil)); a != b {
		t.Errorf("sent %s, got %s", a, b)
	}
}

func TestExecSaysWhyACommandCannotRun(t *testing.T) {
	c := startServe(t).dial(t)
	for _, tc := range []struct {
		name string
		req  agent.ExecRequest
		exit int
		code api.Code
		text string
	}{
		{"unknown", agent.ExecRequest{Command: []string{"no-such-command"}}, 127, api.CodeNotFound, "no-such-command"},
		{"unknown path", agent.ExecRequest{Command: []string{"/no/such"}}, 127, api.CodeNotFound, "/no/such"},
		{"directory", agent.ExecRequest{Command: []string{"/etc"}}, 126, api.CodeInvalid, "/etc"},
		{"no program", agent.ExecRequest{Command: []string{"/etc/passwd"}}, 126, api.CodeInvalid, "/etc/passwd"},
		{"user", agent.ExecRequest{Command: []string{"true"}, User: "nosuchuser"}, 126, api.CodeNotFound, "nosuchuser"},
		{"group", agent.ExecRequest{Command: []string{"true"}, User: "0:nosuchgroup"}, 126, api.CodeNotFound, "nosuchgroup"},
		{"dir", agent.ExecRequest{Command: []string{"true"}, WorkDir: "/no/dir"}, 126, api.CodeNotFound, "/no/dir"},
		{"dir is file", agent.ExecRequest{Command: []string{"true"}, WorkDir: "/etc/passwd"}, 126, api.CodeInvalid, "/etc/passwd"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tryCommand(testContext(t), c, tc.req, nil)
			if err == nil {
				t.Fatal("it ran")
			}
			exit, ok := api.CommandStatus(err)
			if !ok || exit != tc.exit || !api.IsCode(err, tc.code) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("exit %d, %v, code %s: %v", exit, ok, api.AsError(err).Code, err)
			}
		})
	}
}

// The base of commands beside a guest's own init is the agent's environment,
// but not what tunes the agent.
func TestServeKeepsItsRuntimesVariables(t *testing.T) {
	t.Setenv("FROM_ENGINE", "yes")
	t.Setenv("GOTRACEBACK", "none")
	r := command(t, startServe(t).dial(t), sh("echo $FROM_ENGINE; env | grep -c '^GO'"), nil)
	if r.stdout != "yes\n0\n" {
		t.Errorf("got %q", r.stdout)
	}
}
