package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// The test binary is also the keeper, its holder, and the guests.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "cleave-keeper":
		if err := Main(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		syscall.Exit(0) // os.Exit takes a second under the race detector
	case "cleave-keeper-holder":
		Main("")
		syscall.Exit(0)
	case "guest":
		os.Exit(guestMain(os.Args[1], os.Args[2:]))
	}
	os.Exit(m.Run())
}

const allNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

const testOwner = 1 << 20 // host id of the test guests' root

// testKeeper is a keeper in a process of its own.
type testKeeper struct {
	*Client
	t      testing.TB
	dir    string
	socket string
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces with id maps, chown, oom_score_adj")
	}
}

func newKeeper(t testing.TB) *testKeeper {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp("", "keeper") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	k := &testKeeper{t: t, dir: dir, socket: filepath.Join(dir, "keeper.sock")}
	t.Cleanup(k.remove)
	k.ensure()
	return k
}

// ensure starts the keeper, or the next one.
func (k *testKeeper) ensure() {
	k.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		k.t.Fatal(err)
	}
	if k.Client != nil {
		k.Client.Close()
	}
	var started bool
	k.Client, started, err = Ensure(context.Background(), k.socket, exe, slog.New(slog.DiscardHandler))
	if err != nil {
		text, _ := os.ReadFile(logPath(k.socket))
		k.t.Fatalf("ensure: %v\n%s", err, text)
	}
	if !started {
		k.t.Fatal("a keeper was running already")
	}
}

// hang ends a test that waits for what never comes; it says nothing of how
// fast a machine is.
const hang = 2 * time.Minute

// remove ends guests and keeper, and checks that both can be ended.
func (k *testKeeper) remove() {
	defer os.RemoveAll(k.dir)
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	defer k.Client.Close()
	exits, err := k.Exits(ctx)
	if err != nil {
		return // the test has killed it
	}
	guests, err := k.List(ctx)
	if err != nil {
		k.t.Errorf("list: %v", err)
	}
	left := make(map[string]bool)
	for _, g := range guests {
		left[g.ID] = true
		if g.Exited {
			delete(left, g.ID)
		} else {
			k.Signal(ctx, g.ID, syscall.SIGKILL)
		}
	}
	for len(left) > 0 {
		g, ok := <-exits
		if !ok {
			k.t.Errorf("guests did not end: %v", left)
			break
		}
		delete(left, g.ID)
	}
	for _, g := range guests {
		if err := k.Forget(ctx, g.ID); err != nil {
			k.t.Errorf("forget: %v", err)
		}
	}
	processes := []int{openPID(k.t, k.pid()), openPID(k.t, k.holderPID())}
	if err := k.Stop(ctx); err != nil {
		k.t.Errorf("stop: %v", err)
	}
	for _, fd := range processes {
		waitEnd(k.t, fd)
	}
	text, _ := os.ReadFile(logPath(k.socket))
	if strings.Contains(string(text), "DATA RACE") {
		k.t.Error("the race detector has found something in the keeper")
	}
	if k.t.Failed() {
		k.t.Logf("keeper's log:\n%s", text)
	}
}

// kill kills the keeper and waits until it is gone.
func (k *testKeeper) kill() {
	k.t.Helper()
	killPID(k.t, k.pid())
}

func (k *testKeeper) pid() int {
	k.t.Helper()
	text, err := os.ReadFile(lifePath(k.socket))
	if err != nil {
		k.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		k.t.Fatal(err)
	}
	return pid
}

// holderPID finds the holder by the keeper's log, which it has open too.
func (k *testKeeper) holderPID() int {
	k.t.Helper()
	logs, err := filepath.Glob("/proc/[0-9]*/fd/2")
	if err != nil {
		k.t.Fatal(err)
	}
	for _, link := range logs {
		proc := filepath.Dir(filepath.Dir(link))
		comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
		if target, err := os.Readlink(link); err == nil && target == logPath(k.socket) && string(comm) == "cleave-holder\n" {
			pid, _ := strconv.Atoi(filepath.Base(proc))
			return pid
		}
	}
	text, _ := os.ReadFile(logPath(k.socket))
	k.t.Fatalf("the keeper has no holder:\n%s", text)
	return 0
}

func killPID(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	waitEnd(t, fd)
}

// openPID opens a process to wait for its end. The test binary ends soon
// enough to leave the descriptor to it.
func openPID(t testing.TB, pid int) int {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func waitEnd(t testing.TB, pidfd int) {
	t.Helper()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000)
		if err == unix.EINTR {
			continue
		}
		if alive(pidfd) {
			t.Error("a process did not end")
		}
		return
	}
}

// sealedExe is the test binary as the daemon would pass the agent's.
var sealedExe = sync.OnceValues(func() (*os.File, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before 6.3, when all were executable
		fd, err = unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "guest")
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	if _, err := io.Copy(f, self); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	return f, err
})

// request is a guest in all namespaces that runs guestMain(args).
func (k *testKeeper) request(id string, args ...string) *StartRequest {
	k.t.Helper()
	exe, err := sealedExe()
	if err != nil {
		k.t.Fatal(err)
	}
	dir := filepath.Join(k.dir, id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		k.t.Fatal(err)
	}
	ids := []IDMap{{Inside: 0, Outside: testOwner, Count: 65536}}
	return &StartRequest{
		ID: id, Args: append([]string{"guest"}, args...), Env: []string{"GUEST=" + id, "GORACE=atexit_sleep_ms=0"},
		Exe: exe, Clone: allNamespaces, UIDMap: ids, GIDMap: ids, Owner: testOwner,
		Dir: dir, LogDir: filepath.Join(dir, "log"),
	}
}

func (k *testKeeper) start(r *StartRequest) Guest {
	k.t.Helper()
	g, err := k.Start(context.Background(), r)
	if err != nil {
		k.t.Fatal(err)
	}
	return g
}

// wait waits until a guest has ended.
func (k *testKeeper) wait(id string) Guest {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	exits, err := k.Exits(ctx)
	if err != nil {
		k.t.Fatal(err)
	}
	if g := k.find(id); g.Exited {
		return g
	}
	for g := range exits {
		if g.ID == id {
			return g
		}
	}
	k.t.Fatalf("guest %s did not end", id)
	return Guest{}
}

func (k *testKeeper) find(id string) Guest {
	k.t.Helper()
	guests, err := k.List(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	for _, g := range guests {
		if g.ID == id {
			return g
		}
	}
	k.t.Fatalf("no guest %s", id)
	return Guest{}
}

// logs is what a guest wrote to a stream, by its log.
func (k *testKeeper) logs(id, stream string) string {
	k.t.Helper()
	return readStream(k.t, filepath.Join(k.dir, id, "log"), stream, LogOptions{})
}

func readStream(t testing.TB, dir, stream string, opts LogOptions) string {
	t.Helper()
	var b strings.Builder
	err := ReadLogs(context.Background(), dir, opts, func(e LogEntry) error {
		if e.Stream == stream {
			b.Write(e.Data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// follow waits until a guest's log satisfies enough.
func (k *testKeeper) follow(id string, enough func(LogEntry) bool) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	found := errors.New("found")
	err := ReadLogs(ctx, filepath.Join(k.dir, id, "log"), LogOptions{Follow: true}, func(e LogEntry) error {
		if enough(e) {
			return found
		}
		return nil
	})
	if err != found {
		k.t.Fatalf("follow the log of %s: %v", id, err)
	}
}

// ready waits until a guest has said so.
func (k *testKeeper) ready(id string) {
	k.t.Helper()
	k.follow(id, func(e LogEntry) bool { return strings.Contains(string(e.Data), "ready") })
}

func wantCode(t testing.TB, err error, code api.Code) {
	t.Helper()
	if !api.IsCode(err, code) {
		t.Errorf("error %v, want code %s", err, code)
	}
}
