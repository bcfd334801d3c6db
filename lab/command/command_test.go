package command

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/control"
)

// TestMain lets this program be the lab's process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// tool runs commands in a lab of its own.
type tool struct {
	t    *testing.T
	name string
	err  string // what the last one said
}

func (l *tool) status(in string, args ...string) (int, string) {
	l.t.Helper()
	var out, messages bytes.Buffer
	code := Main(append([]string{"--lab", l.name}, args...), strings.NewReader(in), &out, &messages)
	l.err = messages.String()
	return code, out.String()
}

func (l *tool) run(args ...string) string {
	l.t.Helper()
	code, out := l.status("", args...)
	if code != 0 {
		l.t.Fatalf("lab %s ended with %d: %s", strings.Join(args, " "), code, l.err)
	}
	return out
}

func TestLabOutlivesTheCommandsThatUseIt(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: boots a host under emulation")
	}
	if err := lab.Check(); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("../../bin/cleaved"); err != nil {
		t.Skipf("needs our programs: %v (make build)", err)
	}
	l := &tool{t: t, name: fmt.Sprintf("t%d", os.Getpid())}
	dir, err := control.Dir(l.name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if code, _ := l.status("", "down"); code != 0 {
			t.Errorf("down ended with %d: %s", code, l.err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	})
	if code, _ := l.status("", "list"); code != 1 || !strings.Contains(l.err, "lab up") {
		t.Errorf("the list of no lab ended with %d: %s", code, l.err)
	}
	up := []string{"up", "--bin", "../../bin", "--kvm=false"}
	l.run(append(up, "--daemon=false")...)
	t.Run("exec", func(t *testing.T) {
		if code, out := l.status("to cat", "exec", "-i", "h1", "--", "sh", "-c", "cat; exit 7"); code != 7 || out != "to cat" {
			t.Errorf("exec ended with %d and said %q: %s", code, out, l.err)
		}
		if code, _ := l.status("", "exec", "h1", "no-such-program"); code != 127 {
			t.Errorf("a program that isn't there ended with %d: %s", code, l.err)
		}
		if code, _ := l.status("", "exec", "h9", "true"); code != 1 {
			t.Errorf("a command in no host ended with %d: %s", code, l.err)
		}
	})
	t.Run("cp", func(t *testing.T) {
		here := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(here, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		l.run("cp", here, "h1:/root/there")
		l.run("cp", "h1:/root/there", here+".back")
		if b, err := os.ReadFile(here + ".back"); err != nil || string(b) != "content" {
			t.Errorf("it came back as %q, %v", b, err)
		}
	})
	t.Run("up adds what is missing", func(t *testing.T) {
		l.run(append(up, "--hosts", "2", "--memory", "512MiB")...)
		l.run("exec", "h2", "--", "cleave", "launch", "base", "web")
		if list := l.run("exec", "h2", "--", "cleave", "list"); !strings.Contains(list, "running") {
			t.Errorf("its guest doesn't run:\n%s", list)
		}
		l.run("cut", "h1", "h2", "--one-way")
		l.run("delay", "h2", "20ms")
		list := l.run("list")
		for _, want := range []string{"10.87.0.2", "512MiB", "h1 -> h2  delayed by 20ms", "h2 -> h1  delayed by 20ms"} {
			if !strings.Contains(list, want) {
				t.Errorf("no %q in the list:\n%s", want, list)
			}
		}
		l.run("drop", "h1", "h2", "10%", "--one-way")
		if list := l.run("list"); !strings.Contains(list, "h1 -> h2  drops 10 %") {
			t.Errorf("the list is\n%s", list)
		}
		l.run("heal", "h1")
		if list := l.run("list"); strings.Contains(list, "->") {
			t.Errorf("the list is\n%s", list)
		}
	})
	t.Run("power", func(t *testing.T) {
		l.run("kill", "--power", "h2")
		if !strings.Contains(l.err, "lost") {
			t.Errorf("it says not what was lost: %s", l.err)
		}
		if list := l.run("list"); !strings.Contains(list, "h2    off") {
			t.Errorf("the list is\n%s", list)
		}
		l.run("power-off", "h1")
		if logs := l.run("logs", "h1"); !strings.Contains(logs, "appliance: stopping") {
			t.Errorf("its console said\n%s", logs)
		}
	})
	t.Run("nothing outlives its process", func(t *testing.T) { killed(t, l, dir) })
}

// killed kills the lab's process with a host running.
func killed(t *testing.T, l *tool, dir string) {
	l.run("power-on", "h1")
	c := &control.Client{Dir: dir}
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Down(ctx); err != nil { // it waits for the process
		t.Fatal(err)
	}
	for emulators(t, dir) > 0 {
		if ctx.Err() != nil {
			t.Fatal("its hosts are still there")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// emulators counts processes that have a file of the lab open.
func emulators(t *testing.T, dir string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/fd/1")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, l := range links {
		if to, _ := os.Readlink(l); strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

func TestWrongUsageEndsWithTwo(t *testing.T) {
	l := &tool{t: t, name: "none"}
	for _, args := range [][]string{{"up", "--no-such-flag"}, {"cut"}, {"nonsense"}, {"delay", "h1"}} {
		if code, _ := l.status("", args...); code != 2 {
			t.Errorf("lab %v ended with %d: %s", args, code, l.err)
		}
	}
	for _, args := range [][]string{{"delay", "h1", "soon"}, {"drop", "h1", "many"}, {"cp", "a", "b"}, {"up", "--memory", "much"}} {
		if code, _ := l.status("", args...); code != 1 {
			t.Errorf("lab %v ended with %d: %s", args, code, l.err)
		}
	}
}
