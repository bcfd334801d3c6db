package keeper

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func TestKilledKeeperClosesExitsAndClient(t *testing.T) {
	k := newKeeper(t)
	exits, err := k.Exits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.start(k.request("a", "sleep"))
	old := k.Client
	k.Client = nil
	k.kill()
	if g, ok := <-exits; ok {
		t.Errorf("an exit %+v", g)
	}
	_, err = old.List(t.Context())
	wantCode(t, err, api.CodeUnavailable)
	k.ensure()
	// A client holds to its keeper: the new one may not know what it knew.
	_, err = old.List(t.Context())
	wantCode(t, err, api.CodeUnavailable)
	old.Close()
}

func TestNextKeeperTakesOverEverything(t *testing.T) {
	k := newKeeper(t)
	cat := k.request("cat", "cat")
	cat.Stdin = true
	k.start(cat)
	tty := k.request("tty", "winsize")
	tty.Terminal = true
	terminal := k.start(tty)
	k.start(k.request("term", "on-term", "said after the keeper's death"))
	k.start(k.request("meanwhile", "on-term", "said while no keeper was there"))
	k.start(k.request("before", "exit", "9"))
	for _, id := range []string{"cat", "tty", "term", "meanwhile"} {
		k.ready(id)
	}
	before := k.wait("before")
	meanwhile := k.find("meanwhile")
	fd, err := unix.PidfdOpen(meanwhile.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	k.kill()
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		t.Fatal(err)
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	k.ensure()

	if g := k.find("before"); g.ExitCode != 9 || !g.ExitKnown || !g.Ended.Equal(before.Ended) {
		t.Errorf("the end before: %+v", g)
	}
	if g := k.wait("meanwhile"); !endedOrphan(t, g, 42) {
		t.Errorf("the end meanwhile: %+v", g)
	}
	if out := k.logs("meanwhile", "stdout"); out != "ready\nsaid while no keeper was there\nno newline at the end" {
		t.Errorf("output meanwhile: %q", out)
	}
	if err := k.Signal(t.Context(), "term", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if g := k.wait("term"); !endedOrphan(t, g, 42) {
		t.Errorf("the end after: %+v", g)
	}
	if out := k.logs("term", "stdout"); out != "ready\nsaid after the keeper's death\nno newline at the end" {
		t.Errorf("output after: %q", out)
	}

	a := k.attach("tty", AttachOptions{Stdin: true})
	if err := a.Resize(99, 33); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(a.Stdout()).ReadString('\n'); err != nil || !strings.Contains(line, "99x33") {
		t.Errorf("the terminal says %q %v", line, err)
	}
	a = k.attach("cat", AttachOptions{Stdin: true})
	fmt.Fprint(a.Stdin(), "still there\n")
	a.Stdin().Close()
	if out, _, end, err := collect(t, a); err != nil || end.Code != 3 && orphansAreKnown(t) || out != "still there\n" {
		t.Errorf("input after: %q, end %+v %v", out, end, err)
	}

	// To adopt what was taken over is no error, and changes nothing.
	g, err := k.Adopt(t.Context(), AdoptRequest{
		ID: "tty", PID: terminal.PID, StartTime: terminal.StartTime,
		Dir: tty.Dir, LogDir: tty.LogDir, Terminal: true,
	})
	if err != nil || len(g.Lost) > 0 || g.Exited {
		t.Errorf("adopt: %+v %v", g, err)
	}
}

func TestKilledHolderIsReplacedWithAllItHeld(t *testing.T) {
	k := newKeeper(t)
	r := k.request("tty", "winsize")
	r.Terminal = true
	k.start(r)
	k.ready("tty")
	killPID(t, k.holderPID())
	waitLog(t, k, "was replaced")
	k.start(k.request("another", "sleep")) // saved after the others
	k.kill()
	k.ensure()
	a := k.attach("tty", AttachOptions{})
	if err := a.Resize(99, 33); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(a.Stdout()).ReadString('\n'); err != nil || !strings.Contains(line, "99x33") {
		t.Errorf("the terminal says %q %v", line, err)
	}
}

func TestAdoptFindsGuestWhenKeeperAndHolderAreDead(t *testing.T) {
	k := newKeeper(t)
	start := func(r *StartRequest) (Guest, AdoptRequest) {
		g := k.start(r)
		return g, AdoptRequest{ID: r.ID, PID: g.PID, StartTime: g.StartTime, Dir: r.Dir, LogDir: r.LogDir, Terminal: r.Terminal}
	}
	term, adoptTerm := start(k.request("term", "on-term", "adopted"))
	gone, adoptGone := start(k.request("gone", "sleep"))
	terminal := k.request("tty", "sleep")
	terminal.Terminal = true
	tty, adoptTTY := start(terminal)
	k.ready("term")
	k.ready("gone")
	k.ready("tty")
	holder := k.holderPID()
	ttyFD, err := unix.PidfdOpen(tty.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ttyFD)
	k.kill()
	killPID(t, holder)
	killPID(t, gone.PID)
	k.ensure()

	if guests, err := k.List(t.Context()); err != nil || len(guests) > 0 {
		t.Errorf("list %+v %v", guests, err)
	}
	g, err := k.Adopt(t.Context(), adoptTerm)
	if err != nil || g.PID != term.PID || g.Exited || len(g.Lost) > 0 {
		t.Errorf("adopt a guest that lives: %+v %v", g, err)
	}
	if d := g.Started.Sub(term.Started).Abs(); d > time.Minute {
		t.Errorf("it has started %s off", d)
	}
	k.Signal(t.Context(), "term", syscall.SIGTERM)
	if g := k.wait("term"); !endedOrphan(t, g, 42) {
		t.Errorf("its end %+v", g)
	}
	if out := k.logs("term", "stdout"); out != "ready\nadopted\nno newline at the end" {
		t.Errorf("its output %q", out)
	}

	g, err = k.Adopt(t.Context(), adoptGone)
	// Known if init has not reaped it yet.
	lost := !g.ExitKnown && g.ExitCode == -1 && slices.Contains(g.Lost, "exit status")
	if err != nil || !g.Exited || !lost && g.Signal != "SIGKILL" {
		t.Errorf("adopt a guest that has ended: %+v %v", g, err)
	}
	adoptTerm.ID, adoptTerm.PID, adoptTerm.StartTime = "reused", os.Getpid(), 1
	g, err = k.Adopt(t.Context(), adoptTerm)
	if err != nil || !g.Exited || g.ExitKnown {
		t.Errorf("adopt a guest whose pid another process has: %+v %v", g, err)
	}
	g, err = k.Adopt(t.Context(), adoptTTY)
	if err != nil || !slices.Contains(g.Lost, "terminal") {
		t.Errorf("adopt a guest with a terminal: %+v %v", g, err)
	}
	unix.PidfdSendSignal(ttyFD, unix.SIGKILL, nil, 0)
}

func TestGuestsWaitForTheNextKeeperToReadOutput(t *testing.T) {
	k := newKeeper(t)
	const lines = 100_000 // far more than a pipe holds
	k.start(k.request("a", "lines", fmt.Sprint(lines)))
	k.follow("a", func(LogEntry) bool { return true })
	k.kill()
	time.Sleep(50 * time.Millisecond)
	k.ensure()
	k.wait("a")
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "out %d\n", i)
	}
	// What the keeper had read and not yet written when it was killed is
	// gone: one piece at most.
	if got := k.logs("a", "stdout"); len(got) < want.Len()-bufferSize {
		t.Errorf("%d bytes of %d are in the log", len(got), want.Len())
	}
}

func TestEnsureRacesStartOneKeeper(t *testing.T) {
	needRoot(t)
	k := newKeeper(t)
	if err := k.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	type result struct {
		c       *Client
		started bool
		err     error
	}
	results := make(chan result)
	exe, _ := os.Executable()
	for range 8 {
		go func() {
			c, started, err := Ensure(t.Context(), k.socket, exe, nil)
			results <- result{c, started, err}
		}()
	}
	started := 0
	boots := make(map[string]bool)
	for range 8 {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
			continue
		}
		if r.started {
			started++
		}
		boots[r.c.boot] = true
		r.c.Close()
	}
	if started != 1 || len(boots) != 1 {
		t.Errorf("%d keepers were started, %d answer", started, len(boots))
	}
	c, err := Connect(t.Context(), k.socket)
	if err != nil {
		t.Fatal(err)
	}
	k.Client = c
}

func TestEnsureReplacesStaleSocketAndReportsFailure(t *testing.T) {
	k := newKeeper(t)
	k.kill() // leaves the socket behind
	if _, err := os.Lstat(k.socket); err != nil {
		t.Fatal(err)
	}
	_, err := Connect(t.Context(), k.socket)
	wantCode(t, err, api.CodeUnavailable)
	_, _, err = Ensure(t.Context(), k.socket, "/bin/false", nil)
	wantCode(t, err, api.CodeUnavailable)
	if err == nil || !strings.Contains(err.Error(), k.dir) {
		t.Errorf("error %v does not say where to look", err)
	}
	_, _, err = Ensure(t.Context(), k.socket, k.dir+"/none", nil)
	wantCode(t, err, api.CodeUnavailable)
	k.ensure()
	exe, _ := os.Executable()
	second := exec.Command(exe, "--socket", k.socket)
	second.Args[0] = "cleave-keeper"
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "already") {
		t.Errorf("a second keeper: %v %s", err, out)
	}
}

func TestKeeperAndHolderEndWhenNobodyCanReachThem(t *testing.T) {
	k := newKeeper(t)
	k.start(k.request("a", "exit", "0")) // a record that nobody has forgotten
	k.wait("a")
	keeper, holder := openPID(t, k.pid()), openPID(t, k.holderPID())
	k.Client.Close()
	k.kill()
	if alive(keeper) || !alive(holder) {
		t.Error("the holder did not wait for the next keeper")
	}
	os.RemoveAll(k.dir)
	waitEnd(t, holder)

	k = newKeeper(t)
	keeper, holder = openPID(t, k.pid()), openPID(t, k.holderPID())
	os.RemoveAll(k.dir)
	waitEnd(t, keeper)
	waitEnd(t, holder)
}

func waitLog(t *testing.T, k *testKeeper, text string) {
	t.Helper()
	deadline := time.Now().Add(hang)
	for {
		log, err := os.ReadFile(logPath(k.socket))
		if err == nil && strings.Contains(string(log), text) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the keeper's log does not say %q:\n%s", text, log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// endedOrphan tells whether a guest that outlived its keeper ended with code,
// as far as this kernel tells.
func endedOrphan(t *testing.T, g Guest, code int) bool {
	t.Helper()
	known := g.ExitCode == code && g.ExitKnown && len(g.Lost) == 0
	lost := g.ExitCode == -1 && !g.ExitKnown && slices.Contains(g.Lost, "exit status")
	return g.Exited && (known || lost && !orphansAreKnown(t))
}

// orphansAreKnown tries whether a pidfd knows how a process ended that
// another has reaped.
func orphansAreKnown(t *testing.T) bool {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(c.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	return pidfdOutcome(fd).known
}
