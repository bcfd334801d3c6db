package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/api"
)

// The guest's side is this test binary, started again with one of these
// modes: descriptor 3 is the listener, 4 is where Init reports its start.
const (
	modeVar = "CLEAVE_AGENT_TEST"
	procVar = "CLEAVE_AGENT_TEST_PROCESS"
)

func TestMain(m *testing.M) {
	switch os.Getenv(modeVar) {
	case "serve":
		os.Unsetenv(modeVar)
		if err := guest.Serve(inheritedListener()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "init", "machine":
		os.Exit(runInit())
	}
	os.Exit(m.Run())
}

func inheritedListener() net.Listener {
	f := os.NewFile(3, "listener")
	l, err := net.FileListener(f)
	if err != nil {
		panic(err)
	}
	f.Close()
	return l
}

func runInit() int {
	// The namespace's own /proc, which exec of /proc/self/fd needs.
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	var p guest.Process
	must(json.Unmarshal([]byte(os.Getenv(procVar)), &p))
	report := os.NewFile(4, "report")
	started := func(err error) {
		if err != nil {
			must(json.NewEncoder(report).Encode(api.AsError(err)))
		} else {
			io.WriteString(report, "null\n")
		}
		report.Close()
	}
	if os.Getenv(modeVar) == "init" {
		return guest.Init(p, inheritedListener(), started)
	}
	m := guest.Machine{Process: p, Stdin: true, Stdout: os.Stdout, Stderr: os.Stderr}
	if p.TTY {
		m.Terminal = struct {
			io.Reader
			io.Writer
		}{os.Stdin, os.Stdout}
	}
	st := guest.InitMachine(m, inheritedListener(), started)
	fmt.Printf("[%d %s %s]", st.Code, st.Signal, st.Reason)
	return st.Code
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// guestProcess is an agent in a process of its own.
type guestProcess struct {
	cmd    *exec.Cmd
	addr   string
	stdout *bytes.Buffer
	start  *api.Error // how Init's start failed
	waited chan error
}

func startServe(t testing.TB) *guestProcess {
	t.Helper()
	return startGuest(t, "serve", guest.Process{}, nil)
}

// startInit runs an application guest's PID 1 in its own PID namespace.
func startInit(t testing.TB, p guest.Process, change func(*exec.Cmd)) *guestProcess {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making PID and mount namespaces needs root")
	}
	return startGuest(t, "init", p, change)
}

// startMachine is startInit for a machine's.
func startMachine(t testing.TB, p guest.Process, change func(*exec.Cmd)) *guestProcess {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making PID and mount namespaces needs root")
	}
	return startGuest(t, "machine", p, change)
}

func startGuest(t testing.TB, mode string, p guest.Process, change func(*exec.Cmd)) *guestProcess {
	t.Helper()
	g := &guestProcess{addr: filepath.Join(t.TempDir(), "agent.sock"), stdout: new(bytes.Buffer), waited: make(chan error, 1)}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.addr})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	lf, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	defer lf.Close()
	report, reportW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	desc, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	g.cmd = exec.Command("/proc/self/exe")
	g.cmd.Env = append(os.Environ(), modeVar+"="+mode, procVar+"="+string(desc), "GOMAXPROCS=1")
	g.cmd.ExtraFiles = []*os.File{lf, reportW}
	g.cmd.Stdout, g.cmd.Stderr = g.stdout, os.Stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if mode != "serve" {
		g.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	if change != nil {
		change(g.cmd)
	}
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reportW.Close()
	go func() { g.waited <- g.cmd.Wait() }()
	t.Cleanup(func() {
		g.cmd.Process.Kill()
		g.exit(t)
	})
	if mode != "serve" {
		if err := json.NewDecoder(report).Decode(&g.start); err != nil {
			t.Fatalf("the guest's init said nothing: %v", err)
		}
	}
	return g
}

// exit waits for the agent's end and returns its exit status; -n for signal n.
func (g *guestProcess) exit(t testing.TB) int {
	t.Helper()
	select {
	case err := <-g.waited:
		g.waited <- err
	case <-time.After(patience):
		t.Fatal("the agent doesn't end")
	}
	status := g.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return -int(status.Signal())
	}
	return status.ExitStatus()
}

func (g *guestProcess) dial(t testing.TB) *agent.Client {
	t.Helper()
	return dial(t, g.addr)
}

func dial(t testing.TB, addr string) *agent.Client {
	t.Helper()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	c, err := agent.Dial(testContext(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// patience ends a test that hangs; it says nothing of how fast a machine is.
const patience = 2 * time.Minute

// testContext bounds a test's waits.
func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// result is what a command did.
type result struct {
	stdout, stderr string
	code           int
}

// command executes in the guest with in as input, to its end.
func command(t testing.TB, c *agent.Client, req agent.ExecRequest, in io.Reader) result {
	t.Helper()
	r, err := tryCommand(testContext(t), c, req, in)
	if err != nil {
		t.Fatalf("%v: %v", req.Command, err)
	}
	return r
}

func tryCommand(ctx context.Context, c *agent.Client, req agent.ExecRequest, in io.Reader) (result, error) {
	req.Stdin = in != nil
	e, err := c.Exec(ctx, req)
	if err != nil {
		return result{}, err
	}
	defer e.Close()
	if in != nil {
		go func() {
			io.Copy(e.Stdin(), in)
			e.Stdin().Close()
		}()
	}
	var stdout, stderr bytes.Buffer
	errs := make(chan error, 2)
	go func() {
		_, err := io.Copy(&stdout, e.Stdout())
		errs <- err
	}()
	go func() {
		var err error
		if e.Stderr() != nil {
			_, err = io.Copy(&stderr, e.Stderr())
		}
		errs <- err
	}()
	code, err := e.Wait(ctx)
	err = errors.Join(err, <-errs, <-errs)
	return result{stdout.String(), stderr.String(), code}, err
}

func sh(script string) agent.ExecRequest {
	return agent.ExecRequest{Command: []string{"sh", "-c", script}}
}
