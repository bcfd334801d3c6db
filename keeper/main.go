package keeper

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// How a keeper process is told what to be.
const (
	envRole  = "CLEAVE_KEEPER_ROLE"     // holder, or nothing
	envReady = "CLEAVE_KEEPER_READY_FD" // gets "ok" once clients may connect, or the reason why not
	envFiles = "CLEAVE_KEEPER_FILES"    // set once the limit of open files is

	roleHolder = "holder"
	readyOK    = "ok"
)

// Files beside the socket, whose names they share: what a keeper that Ensure
// started says, the lock of those who want to start one, the lock that a
// keeper has as long as it lives, and the holder's socket.
func logPath(socket string) string  { return strings.TrimSuffix(socket, ".sock") + ".log" }
func lockPath(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".lock" }
func lifePath(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".pid" }
func holdPath(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".hold" }

// Main is the keeper's process, or its holder's. It returns when a client has
// stopped the keeper, or SIGTERM came while it held no guest.
func Main(socket string) error {
	if os.Getenv(envRole) == roleHolder {
		return holderMain()
	}
	if err := limitFiles(); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
	ready := readyFile()
	err := run(socket, log, ready)
	if err != nil && ready != nil {
		fmt.Fprintln(ready, err) // to nobody, if it was ready before
	}
	return err
}

func run(socket string, log *slog.Logger, ready *os.File) error {
	// Not ignored but caught: an ignored signal would stay so in the guests.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)
	if err := settleIn(log); err != nil {
		return err
	}
	life, err := claim(socket)
	if err != nil {
		return err
	}
	defer life.Close()

	s, err := newServer(rand.Text(), log)
	if err != nil {
		return err
	}
	var held []heldGuest
	s.store, held = openStore(holdPath(socket), log, s.saveAll)
	s.restore(held)
	l, err := listen(socket) // what lay there is stale: the claim is ours
	if err != nil {
		return err
	}
	s.unlisten = func() { l.Close() }
	var accepting sync.WaitGroup
	accepting.Go(func() { s.accept(l) })
	events, err := whenGone(socket, s.unreachable)
	if err != nil {
		return err
	}
	defer events.Close()
	log.Info("the keeper is ready", "socket", socket, "guests", len(s.guests))
	if ready != nil {
		fmt.Fprintln(ready, readyOK)
		ready.Close()
	}
	for {
		select {
		case sig := <-signals:
			if sig == unix.SIGHUP {
				continue // of a terminal that somebody started it from
			}
			if err := s.stop(); err != nil {
				log.Warn("a signal is ignored", "signal", sig, "reason", err)
				continue
			}
			close(s.quit)
		case <-s.quit:
			accepting.Wait()
			s.close()
			s.store.close()
			log.Info("the keeper ends")
			return nil
		}
	}
}

// settleIn makes the process what a keeper should be.
func settleIn(log *slog.Logger) error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	unix.Umask(0o022) // which the guests inherit
	// What the one who started us has leaked must not reach the guests.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	// Little garbage is made, and the smaller the heap, the cheaper a clone.
	debug.SetGCPercent(50)
	// The kernel must not pick the parent of all guests when it runs out of
	// memory. Guests get 0 again.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		log.Warn("the keeper is not protected from the OOM killer", "error", err)
	}
	return nil
}

// Limits of open files that a guest starts with: what systemd gives to
// services. The hard one is as high as the kernel's default lets it be, since
// a guest can't raise it, and each guest takes up to five descriptors of the
// keeper.
const (
	softFiles = 1024
	hardFiles = 1 << 20
)

// limitFiles sets the limits that guests start with, and executes the program
// anew: only the limits that it has from its start are what package syscall
// gives to children, while it raises the soft one for itself.
func limitFiles() error {
	if os.Getenv(envFiles) != "" {
		os.Unsetenv(envFiles)
		// The name that the execution through /proc has given.
		return os.WriteFile("/proc/self/comm", []byte("cleave-keeper"), 0)
	}
	var own syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &own); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: softFiles, Max: hardFiles})
	if errors.Is(err, fs.ErrPermission) { // to raise it needs CAP_SYS_RESOURCE
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: min(softFiles, own.Max), Max: own.Max})
	}
	if err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), envFiles+"=set"))
}

// claim makes this process the keeper of a socket: by a lock that lasts as
// long as its life, so that a dead keeper's claim is void. The file tells
// people the pid.
func claim(socket string) (*os.File, error) {
	taken := api.Errorf(api.CodeExists, "a keeper listens on %s already", socket)
	if answers(socket) {
		return nil, taken
	}
	f, err := os.OpenFile(lifePath(socket), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// Waits for a keeper that is dying, or one that is starting.
	if err := flock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if answers(socket) {
		f.Close()
		return nil, taken
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// listen makes a socket in place of what lies there. Its mode is not set in
// the same moment, but who could slip in is turned away by checkPeer.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func answers(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			return err
		}
	}
}

// readyFile is where Ensure waits for the keeper's word.
func readyFile() *os.File {
	fd, err := strconv.Atoi(os.Getenv(envReady))
	os.Unsetenv(envReady)
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "ready")
}
