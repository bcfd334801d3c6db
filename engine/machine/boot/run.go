package boot

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// drainGrace is how long the host may take to read what was sent last.
const drainGrace = 5 * time.Second

// application is PID 1 until the entry point has ended. It doesn't return
// then.
func (m *machine) application() error {
	agent, err := m.openLine(vitals.PortAgent, vitals.LineAgent)
	if err != nil {
		return err
	}
	g := guest.Machine{Process: m.process(), Stdin: m.boot.Process.Stdin, Devices: m.plugs()}
	var lines []*port
	open := func(name, line string) (p *port) {
		if err == nil {
			p, err = m.openLine(name, line)
			lines = append(lines, p)
		}
		return p
	}
	if g.TTY {
		t := open(vitals.PortTerminal, vitals.LineTerminal)
		if t != nil {
			t.hush = true
		}
		g.Terminal = t
	} else {
		g.Stdout, g.Stderr = open(vitals.PortStdout, vitals.LineStdout), open(vitals.PortStderr, vitals.LineStderr)
	}
	if err != nil {
		return err
	}
	if g.Cgroup, err = m.cgroup(); err != nil {
		return err
	}
	m.events.close()
	exit := guest.InitMachine(g, link.Listen(withHatch(agent, m.control)), func(err error) {
		if m.status.Phase = vitals.PhaseRunning; err != nil {
			m.status.Phase, m.status.Error = vitals.PhaseEnded, api.AsError(err)
		}
		m.say(m.note())
	})
	m.status.Phase, m.status.Exit = vitals.PhaseEnded, exit
	m.end(lines)
	return nil
}

func (m *machine) process() guest.Process {
	p := m.boot.Process
	return guest.Process{Args: p.Args, Env: p.Env, User: p.User, WorkDir: p.WorkDir, TTY: p.TTY}
}

// maintain serves the agent until it is asked to power off.
func (m *machine) maintain() error {
	agent, err := m.openLine(vitals.PortAgent, vitals.LineAgent)
	if err != nil {
		return err
	}
	m.status.Phase = vitals.PhaseRunning
	if err := m.note(); err != nil {
		return err
	}
	guest.InitMaintenance(m.boot.Process.Env, m.disk, link.Listen(withHatch(agent, m.control)))
	m.status.Phase, m.status.Exit = vitals.PhaseEnded, api.ExitStatus{Reason: "poweroff"}
	m.end(nil)
	return nil
}

// ArgCompanion has this program call Companion.
const ArgCompanion = "companion"

// Descriptors of the companion.
const (
	companionAgent   = 3
	companionControl = 4
)

// system executes the guest's init, with the agent beside it. It returns only
// with an error.
func (m *machine) system() error {
	p := m.boot.Process
	env := withTerm(p.Env)
	file, err := findProgram(p.Args[0], env)
	if err != nil {
		return err
	}
	agent, err := m.openLine(vitals.PortAgent, vitals.LineAgent)
	if err != nil {
		return err
	}
	m.events.close()
	if err := m.startCompanion(agent); err != nil {
		return fmt.Errorf("start the agent beside %s: %w", p.Args[0], err)
	}
	m.status.Phase = vitals.PhaseRunning
	if err := m.note(); err != nil {
		return err
	}
	code := api.CodeInvalid
	if err = syscall.Exec(file, p.Args, env); errors.Is(err, unix.ENOENT) {
		code = api.CodeNotFound
	}
	return api.Errorf(code, "execute %s as the guest's init: %w", file, err).WithField(api.FieldCommand)
}

// startCompanion starts this program once more, from its own file, which lies
// in memory and has no name any more.
func (m *machine) startCompanion(agent *port) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	_, err = syscall.ForkExec("/proc/self/exe", []string{"cleave-agent", ArgCompanion}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1", "PATH=" + defaultPath, "HOME=/root"},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), companionAgent: agent.fd(), companionControl: m.control.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

// Companion is the agent beside a system's init. When it is told to end, as
// all processes are in an orderly shutdown, it notes that and returns.
func Companion() error {
	agent, err := newPort(companionAgent, "agent")
	if err != nil {
		return err
	}
	unix.CloseOnExec(companionAgent)
	unix.CloseOnExec(companionControl)
	control := os.NewFile(companionControl, "control")
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	go func() {
		<-stop
		s, err := vitals.ReadStatus(control)
		if err == nil {
			s.Phase, s.Exit = vitals.PhaseEnding, api.ExitStatus{}
			err = vitals.WriteStatus(control, &s)
		}
		if err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}()
	return guest.ServeMachine(link.Listen(withHatch(agent, control)), (&machine{}).plugs())
}

// ArgServePort has this program call ServePort with the argument after it.
const ArgServePort = "serve-port"

// ServePort is the agent of a system that has its own kernel and its own way
// to start it: it serves on a port until it is ended.
func ServePort(path string) error {
	p, err := openPort(path)
	if err != nil {
		return err
	}
	return guest.ServeMachine(link.Listen(p), nil)
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// withTerm is env with what the kernel gives an init.
func withTerm(env []string) []string {
	for _, kv := range env {
		if strings.HasPrefix(kv, "TERM=") {
			return env
		}
	}
	return append([]string{"TERM=linux"}, env...)
}

// findProgram finds what execvp(3) would execute.
func findProgram(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // executing it says what is wrong
	}
	search := defaultPath
	for _, kv := range env {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = p
		}
	}
	for dir := range strings.SplitSeq(search, ":") {
		file := path.Join(dir, name)
		if st, err := os.Stat(file); err == nil && st.Mode().IsRegular() && unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
	}
	return "", api.Errorf(api.CodeNotFound, "execute %s as the guest's init: not found in PATH (%s)", name, search).WithField(api.FieldCommand)
}
