package control

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func TestThereIsNoLabUntilItIsUp(t *testing.T) {
	c := &Client{Dir: filepath.Join(t.TempDir(), "lab")}
	if _, err := c.Status(t.Context()); api.AsError(err).Code != api.CodeNotFound {
		t.Errorf("the status of none: %v", err)
	}
	if _, err := c.Agent(t.Context(), "h1"); api.AsError(err).Code != api.CodeNotFound {
		t.Errorf("an agent of none: %v", err)
	}
	if err := c.Down(t.Context()); err != nil {
		t.Errorf("none could not be taken down: %v", err)
	}
}

func TestWhatAKilledProcessLeftIsTakenDown(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	if err := os.MkdirAll(filepath.Join(dir, dirLab), 0o700); err != nil {
		t.Fatal(err)
	}
	held, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if running, err := removeLeft(dir); !running || err != nil {
		t.Errorf("a lab that is held was taken for left: %v, %v", running, err)
	}
	if _, err := lock(dir); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second process got the lab: %v", err)
	}
	held.Close()
	if err := (&Client{Dir: dir}).Down(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("something was left")
	}
}

func TestProcessThatFailsSaysWhy(t *testing.T) {
	c := &Client{Dir: filepath.Join(t.TempDir(), "lab")}
	err := c.Start(t.Context(), "sh", "-c", "echo because of that >&2; exit 1")
	if err == nil || !strings.Contains(err.Error(), "because of that") {
		t.Errorf("the error is %v", err)
	}
}

func TestLabsHaveDecentNames(t *testing.T) {
	for _, name := range []string{"", "../x", "a/b"} {
		if dir, err := Dir(name); err == nil {
			t.Errorf("%q has the directory %s", name, dir)
		}
	}
}
