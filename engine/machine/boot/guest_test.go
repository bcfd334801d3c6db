package boot_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// guest is a machine under User Mode Linux, without any engine.
type guest struct {
	t       testing.TB
	fix     *fixture
	dir     string
	boot    vitals.Boot
	image   string
	root    string
	control string
	initrd  string
	disks   []string // more of them
	args    []string

	cmd             *exec.Cmd
	console         output
	stdout, stderr  output
	toGuest, toHost *os.File // the agent's line, of User Mode Linux
	socket          string   // of QEMU
	terminal        *os.File // what is typed, with a TTY
	started         time.Time
	ended           chan struct{}
}

// output is what has been written so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	eof chan struct{}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// from collects until r ends.
func (o *output) from(r io.Reader) {
	o.mu.Lock()
	o.buf.Reset()
	o.mu.Unlock()
	eof := make(chan struct{})
	o.eof = eof
	go func() {
		defer close(eof)
		b := bufio.NewReader(r)
		for {
			c, err := b.ReadByte()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.buf.WriteByte(c)
			o.mu.Unlock()
		}
	}()
}

// newGuest is an application guest that runs a script.
func newGuest(t testing.TB, script string) *guest {
	t.Helper()
	fix := need(t)
	g := &guest{t: t, fix: fix, dir: t.TempDir(), image: fix.image, initrd: fix.initrd}
	g.root, g.control = filepath.Join(g.dir, "root"), filepath.Join(g.dir, "control")
	if err := command("cp", "--sparse=always", fix.root, g.root); err != nil {
		t.Fatal(err)
	}
	g.boot = vitals.Boot{
		Hostname: "guest", Hosts: "127.0.0.1 localhost guest\n", Resolv: "nameserver 10.0.0.1\n",
		Process: vitals.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/sbin"}},
	}
	return g
}

// start boots the machine.
func (g *guest) start() *guest {
	g.t.Helper()
	f, err := os.Create(g.control)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(vitals.Size); err != nil {
		g.t.Fatal(err)
	}
	if err := vitals.WriteBoot(f, &g.boot); err != nil {
		g.t.Fatal(err)
	}
	g.run()
	return g
}

// run runs the monitor on disks that are there.
func (g *guest) run() {
	g.t.Helper()
	var files, theirs []*os.File
	pipe := func(ours int) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			g.t.Fatal(err)
		}
		p := [2]*os.File{r, w}
		files, theirs = append(files, p[1-ours]), append(theirs, p[1-ours])
		g.t.Cleanup(func() { p[ours].Close() })
		return p[ours]
	}
	stdout, stderr := pipe(0), pipe(0) // 3 and 4
	g.toGuest, g.toHost = pipe(1), pipe(0)
	g.terminal = pipe(1) // 7
	if g.socket == "" {
		g.cmd = exec.Command(umlProgram, g.uml()...)
	} else {
		g.cmd = exec.Command(qemuProgram, g.qemu()...)
	}
	g.cmd.ExtraFiles = files
	// Killed, it leaves the processes of the guest behind, which it traced.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	console, err := g.cmd.StdoutPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	g.started = time.Now()
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	for _, f := range theirs {
		f.Close()
	}
	g.console.from(console)
	g.stdout.from(stdout)
	g.stderr.from(stderr)
	cmd, eof, ended := g.cmd, g.console.eof, make(chan struct{})
	g.ended = ended
	go func() {
		<-eof
		_ = cmd.Wait() // the control disk says how
		close(ended)
	}()
	g.t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
}

// uml is User Mode Linux's command line.
func (g *guest) uml() []string {
	line1 := "null,fd:3"
	if g.boot.Process.TTY {
		line1 = "fd:7,fd:3"
	}
	args := []string{
		"mem=128M", "initrd=" + g.initrd, "uml_dir=" + g.dir, "ubd0r=" + g.image, "ubd1=" + g.root, "ubd2=" + g.control,
		"quiet", "loglevel=4", "panic=-1", vitals.DisksArg + vitals.DisksUBD,
		"con=null", "console=ttyS0", "ssl0=null,fd:1", "ssl1=" + line1, "ssl2=null,fd:4", "ssl3=fd:5,fd:6",
	}
	for i, d := range g.disks {
		args = append(args, fmt.Sprintf("ubd%d=%s", 3+i, d))
	}
	return append(args, g.args...)
}

// end waits for the machine's end and returns what it says of itself.
func (g *guest) end() vitals.Status {
	g.t.Helper()
	select {
	case <-g.ended:
	case <-time.After(hangGuard):
		g.t.Fatalf("the machine doesn't end: %+v\nstdout %.1000q\nstderr %.1000q\n%s", g.status(), g.stdout.String(), g.stderr.String(), g.console.String())
	}
	<-g.stdout.eof
	<-g.stderr.eof
	return g.status()
}

// status is what the control disk says.
func (g *guest) status() vitals.Status {
	g.t.Helper()
	f, err := os.Open(g.control)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	s, err := vitals.ReadStatus(f)
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.console.String())
	}
	if g.t.Failed() {
		g.t.Log(g.console.String())
	}
	return s
}

// channel is the host's end of the agent's line.
type channel struct {
	r, w *os.File
}

func (c channel) Read(p []byte) (int, error)  { return c.r.Read(p) }
func (c channel) Write(p []byte) (int, error) { return c.w.Write(p) }
func (c channel) Close() error {
	c.r.Close()
	return c.w.Close()
}

// session opens the agent's line, as a daemon does: it can be done again.
func (g *guest) session() *link.Session {
	g.t.Helper()
	s, err := link.NewSession(g.context(), g.line())
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.console.String())
	}
	g.t.Cleanup(func() { s.Close() })
	return s
}

// line is the host's end of the agent's line.
func (g *guest) line() io.ReadWriteCloser {
	g.t.Helper()
	if g.socket == "" {
		return channel{dup(g.t, g.toHost), dup(g.t, g.toGuest)}
	}
	for deadline := time.Now().Add(hangGuard); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", g.socket)
		if err == nil {
			return c
		}
		if time.Now().After(deadline) {
			g.t.Fatal(err)
		}
	}
}

// dup is another end of the same pipe, that can be closed while others wait.
func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (g *guest) context() context.Context {
	ctx, cancel := context.WithTimeout(g.t.Context(), hangGuard)
	g.t.Cleanup(cancel)
	return ctx
}

// client connects to the agent.
func (g *guest) client(s *link.Session) *agent.Client {
	g.t.Helper()
	conn, err := s.Open(g.context())
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := agent.Dial(g.context(), conn)
	if err != nil {
		g.t.Fatalf("%v\n%s", err, g.console.String())
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// exec runs a script in the guest and returns what it wrote.
func (g *guest) exec(c *agent.Client, script string) string {
	g.t.Helper()
	e, err := c.Exec(g.context(), execRequest(script))
	if err != nil {
		g.t.Fatal(err)
	}
	defer e.Close()
	var errs bytes.Buffer
	go io.Copy(&errs, e.Stderr())
	out, err := io.ReadAll(e.Stdout())
	if err != nil {
		g.t.Fatal(err)
	}
	if code, err := e.Wait(g.context()); err != nil || code != 0 {
		g.t.Fatalf("%s: exit %d, %v\n%s", script, code, err, errs.String())
	}
	return string(out)
}

func execRequest(script string) agent.ExecRequest {
	return agent.ExecRequest{Command: []string{"sh", "-c", script}}
}
