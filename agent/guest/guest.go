// Package guest is the side of the agent that lives inside a guest: PID 1 of
// an application guest (Init), or a process beside the guest's own init
// (Serve). Both serve the protocol of package agent/wire.
//
// The agent has exactly the guest's rights: what confines the guest confines
// it and all that it starts, and nothing here tries to protect itself from the
// guest's root. What it does protect are users of the guest from each other:
// files are copied by descriptors, so that nobody can divert a copy that the
// guest's root makes.
//
// An agent without a connection has a few parked goroutines, no timer, and
// gives its memory back. The size of Go's own structures goes by GOMAXPROCS:
// whoever starts an agent sets it to 1 in its environment. Private memory is
// then 0.7 MiB after the start and 0.9 after a first command, where with 16
// it is 1.0 and 2.1; one stream is as fast.
package guest

import (
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Process is the guest's entry point, and what commands inherit from it.
type Process struct {
	Args    []string // never empty
	Env     []string // KEY=VALUE
	User    string   // USER or UID, with :GROUP or :GID; resolved in the guest
	WorkDir string   // "/" if empty
	TTY     bool     // descriptors 0 to 2 are a terminal
}

// gcPercent trades time, which the agent needs little of, for memory, of
// which every guest pays its part: the heap begins to be collected at 1 MiB
// instead of 4.
const gcPercent = 25

// Serve answers on l until l is closed, and then ends its connections; for
// an agent that runs beside the guest's own init. Commands get the agent's own
// environment as base (without what tunes the agent's runtime), and run as
// root.
func Serve(l net.Listener) error {
	if err := prepareSelf(); err != nil {
		return err
	}
	r := newReaper(false)
	defer r.close()
	return newServer(Process{Env: ownEnv()}, r).serve(l)
}

// runtimeEnv is what Go's runtime listens to (package runtime).
var runtimeEnv = []string{"GOMAXPROCS", "GOTRACEBACK", "GOGC", "GOMEMLIMIT", "GODEBUG"}

// Init is PID 1 of an application guest: it starts p as the leader of its own
// session (with TTY: in control of the terminal), calls started once with nil
// or with why p could not be started, serves the agent's protocol on l (if
// not nil), reaps every orphan, and forwards signals to p's process. It
// returns the exit status as soon as that process has ended, 128+n when
// signal n ended it; 127 or 126 when it could not be started. The caller then
// exits, and the kernel ends what is left in the PID namespace.
//
// Init waits for all children of this process: nothing else in it may.
func Init(p Process, l net.Listener, started func(error)) (exitCode int) {
	signals := catch() // before the start: none is lost, none ends us
	r := newReaper(true)
	err := prepareSelf()
	var main *child
	if err == nil {
		main, err = startMain(p, r)
	}
	started(err)
	if err != nil {
		return startCode(err)
	}
	if l != nil {
		s := newServer(p, r)
		s.entry = &entryPoint{child: main}
		go serveFirst(s, l)
	}
	forward(signals, main)
	return main.exitCode()
}

// prepareSelf sets what all processes that the agent starts inherit: no
// descriptor of whoever started the agent, wherever it forgot one (one of a
// host directory is a way out, CVE-2024-21626), the usual umask, and no
// signal that is ignored because whoever started the agent ignores it, as
// nohup(1) does: Go leaves these two as they are.
func prepareSelf() error {
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s) // a handler is the default again in who is executed
		}
	}
	debug.SetGCPercent(gcPercent)
	spareThreads()
	unix.Umask(0o022)
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return errnoError(err, "starting the agent: keeping its descriptors from the guest (close_range, since Linux 5.11)")
	}
	return nil
}

// spare is how many threads are kept for later.
const spare = 2

// spareThreads makes threads that Go's runtime keeps. It ends the process when
// it needs one more than there is room for, and a fork bomb leaves none: the
// guest would end with its agent.
func spareThreads() {
	var made sync.WaitGroup
	keep := make(chan struct{})
	for range spare {
		made.Add(1)
		go func() {
			runtime.LockOSThread()
			made.Done()
			<-keep
			runtime.UnlockOSThread() // else it would end with the goroutine
		}()
	}
	made.Wait()
	close(keep)
}

func startMain(p Process, r *reaper) (*child, error) {
	cmd, err := prepare(p.Args, p.Env, p.User, p.WorkDir, p.TTY)
	if err != nil {
		return nil, err
	}
	for fd := range 3 {
		own(fd, cmd.user)
	}
	return cmd.start(r, [3]uintptr{0, 1, 2}, p.TTY)
}

// own gives a pipe or terminal to the user, so that it can be opened again as
// /dev/stdout or /dev/tty. Where that isn't allowed the process still has its
// descriptors. Devices that everyone shares, like /dev/null, stay root's.
func own(fd int, user account) {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Uid == user.uid {
		return
	}
	_, notTTY := unix.IoctlGetTermios(fd, unix.TCGETS)
	if notTTY == nil || st.Mode&unix.S_IFMT == unix.S_IFIFO {
		_ = unix.Fchown(fd, int(user.uid), -1)
	}
}

// startCode is the exit status that a shell gives for a command that it could
// not start.
func startCode(err error) int {
	if status, ok := api.CommandStatus(err); ok {
		return status
	}
	return 126
}
