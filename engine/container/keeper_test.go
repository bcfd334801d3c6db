package container

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/keeper"
)

// keeperPID finds the keeper of an engine.
func keeperPID(t *testing.T, socket string) int {
	t.Helper()
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && bytes.HasPrefix(b, []byte("cleave-keeper\x00")) && bytes.Contains(b, []byte(socket)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	t.Fatalf("no keeper at %s", socket)
	return 0
}

func TestGuestsOutliveTheirKeeper(t *testing.T) {
	e := newEngine(t)
	socket := filepath.Join(filepath.Dir(e.opts.Run), "keeper.sock")
	lives, dies := guestSpec(t, "echo ready; exec sleep 1000"), guestSpec(t, "echo ready; read x; exit 4")
	dies.Proc.Stdin = true
	enginetest.Start(t, e, lives)
	enginetest.WaitLog(t, e, lives.ID, "ready")
	enginetest.Start(t, e, dies)
	enginetest.WaitLog(t, e, dies.ID, "ready")
	if err := unix.Kill(keeperPID(t, socket), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r, err := e.book.Read(dies.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(r.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for r.Alive() { // somebody else's child: reaped by whoever inherits it
		time.Sleep(time.Millisecond)
	}
	k, started, err := keeper.Ensure(context.Background(), socket, shared.keeper, slog.New(slog.DiscardHandler))
	for deadline := time.Now().Add(patience); err != nil || !started; {
		if time.Now().After(deadline) {
			t.Fatalf("no new keeper: %v", err)
		}
		k, started, err = keeper.Ensure(context.Background(), socket, shared.keeper, slog.New(slog.DiscardHandler))
	}
	if err := e.SetKeeper(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	gs, err := e.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	running := map[string]bool{}
	for _, g := range gs {
		running[g.ID] = g.Running
		if !g.Running && g.Exit == nil {
			t.Errorf("guest %s has ended without an exit", g.ID)
		}
	}
	if !running[lives.ID] || running[dies.ID] || len(gs) != 2 {
		t.Errorf("guests %+v", gs)
	}
	if out, code := inGuest(t, e, lives.ID, "echo", "here"); code != 0 || out != "here" {
		t.Errorf("exit %d, output %q", code, out)
	}
	if err := e.Signal(t.Context(), lives.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	enginetest.WaitExit(t, e, lives.ID)
}
