package enginetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/keeper"
)

// hang ends what waits for a guest in vain; it says nothing of how fast a
// machine is.
const hang = 5 * time.Minute

// Start starts a guest that is forgotten after the test, whether it started
// or not.
func Start(t testing.TB, e engine.Engine, spec *engine.Spec) *engine.Guest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	g, err := e.Start(ctx, spec)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), hang)
		defer cancel()
		if err := e.Forget(ctx, spec.ID); err != nil {
			t.Errorf("forget: %v", err)
		}
	})
	if err != nil {
		t.Fatalf("start: %v\n%s", err, Log(t, e, spec.ID))
	}
	return g
}

// WaitExit waits for a guest's end. Ends of other guests are lost.
func WaitExit(t testing.TB, e engine.Engine, id string) api.ExitStatus {
	t.Helper()
	deadline := time.After(hang)
	for {
		select {
		case x := <-e.Exits():
			if x.ID == id {
				return x.Status
			}
		case <-deadline:
			t.Fatalf("guest %s doesn't end\n%s", id, Log(t, e, id))
		}
	}
}

// Log is what a guest has written.
func Log(t testing.TB, e engine.Engine, id string) string {
	t.Helper()
	var b bytes.Buffer
	err := keeper.ReadLogs(context.Background(), e.LogDir(id), keeper.LogOptions{}, func(l keeper.LogEntry) error {
		b.Write(l.Data)
		return nil
	})
	if err != nil {
		t.Logf("read log: %v", err)
	}
	return b.String()
}

// WaitLog waits until a guest has written something.
func WaitLog(t testing.TB, e engine.Engine, id, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	found := errors.New("found")
	var got strings.Builder
	err := keeper.ReadLogs(ctx, e.LogDir(id), keeper.LogOptions{Follow: true}, func(l keeper.LogEntry) error {
		got.Write(l.Data)
		if strings.Contains(got.String(), text) {
			return found
		}
		return nil
	})
	if !errors.Is(err, found) {
		t.Fatalf("guest %s doesn't write %q: %v\n%s", id, text, err, got.String())
	}
}

// Exec runs a command by a guest's agent, which must be there.
func Exec(t testing.TB, e engine.Engine, id string, command ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	c := dial(ctx, t, e, id)
	defer c.Close()
	x, err := c.Exec(ctx, agent.ExecRequest{Command: command})
	if err != nil {
		t.Fatalf("exec %q: %v", command, err)
	}
	defer x.Close()
	x.Stdin().Close()
	var errOut bytes.Buffer
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(&errOut, x.Stderr()) })
	out, err := io.ReadAll(x.Stdout())
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if code, err = x.Wait(ctx); err != nil {
		t.Fatalf("exec %q: %v", command, err)
	}
	return string(out), errOut.String(), code
}

// dial connects to a guest's agent.
func dial(ctx context.Context, t testing.TB, e engine.Engine, id string) *agent.Client {
	t.Helper()
	conn, err := e.Agent(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := agent.Dial(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
