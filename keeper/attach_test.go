package keeper

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func (k *testKeeper) attach(id string, opts AttachOptions) *Attachment {
	k.t.Helper()
	a, err := k.Attach(context.Background(), id, opts)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { a.Close() })
	return a
}

// collect reads an attachment to its end.
func collect(t testing.TB, a *Attachment) (stdout, stderr string, end api.ExitStatus, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	var outErr, errErr error
	var readers sync.WaitGroup
	readers.Go(func() { _, outErr = io.Copy(&out, a.Stdout()) })
	if !a.Terminal() {
		readers.Go(func() { _, errErr = io.Copy(&errs, a.Stderr()) })
	}
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	defer cancel()
	end, err = a.Exit(ctx)
	if err == nil {
		readers.Wait()
		if outErr != nil || errErr != nil {
			t.Errorf("streams ended with %v, %v", outErr, errErr)
		}
	}
	return out.String(), errs.String(), end, err
}

func TestAttachDeliversInputOutputAndExit(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "cat")
	r.Stdin = true
	k.start(r)
	a := k.attach("a", AttachOptions{Stdin: true, Replay: true})
	input := bytes.Repeat([]byte("binary \x00\xff\r\n data\n"), 100_000)
	var writer sync.WaitGroup
	writer.Go(func() {
		if _, err := a.Stdin().Write(input); err != nil {
			t.Errorf("write: %v", err)
		}
		if err := a.Stdin().Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	stdout, stderr, end, err := collect(t, a)
	writer.Wait()
	if err != nil || end.Code != 3 {
		t.Errorf("end %+v %v", end, err)
	}
	if stdout != string(input) {
		t.Errorf("%d bytes came back of %d", len(stdout), len(input))
	}
	want := fmt.Sprintf("ready\neof after %d bytes <nil>\n", len(input))
	if stderr != want {
		t.Errorf("stderr %q, want %q", stderr, want)
	}
	if got := k.logs("a", "stdout"); got != string(input) {
		t.Errorf("%d bytes in the log of %d", len(got), len(input))
	}
}

func TestDetachLeavesInputOpen(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "cat")
	r.Stdin = true
	k.start(r)
	for i := range 3 {
		a := k.attach("a", AttachOptions{Stdin: true})
		go io.Copy(io.Discard, a.Stderr())
		fmt.Fprintf(a.Stdin(), "line %d\n", i)
		line, err := bufio.NewReader(a.Stdout()).ReadString('\n')
		if err != nil || line != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("got %q %v", line, err)
		}
		a.Close()
	}
	if g := k.find("a"); g.Exited {
		t.Error("detaching ended the guest")
	}
	a := k.attach("a", AttachOptions{Stdin: true})
	a.Stdin().Close()
	if _, _, end, err := collect(t, a); err != nil || end.Code != 3 {
		t.Errorf("end %+v %v", end, err)
	}
}

func TestAttachRefusesInputThatIsNotThere(t *testing.T) {
	k := newKeeper(t)
	k.start(k.request("none", "sleep"))
	_, err := k.Attach(t.Context(), "none", AttachOptions{Stdin: true})
	wantCode(t, err, api.CodeConflict)
	_, err = k.Attach(t.Context(), "missing", AttachOptions{})
	wantCode(t, err, api.CodeNotFound)

	r := k.request("hog", "hog")
	r.Stdin = true
	k.start(r)
	a := k.attach("hog", AttachOptions{Stdin: true})
	a.Stdin().Close()
	deadline := time.Now().Add(hang)
	for !api.IsCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "closed") {
		var b *Attachment
		if b, err = k.Attach(t.Context(), "hog", AttachOptions{Stdin: true}); err == nil {
			b.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("attaching to a closed input: %v", err)
		}
	}
}

// A guest that doesn't read its input must not hold on to those who write it.
func TestWriterOfUnreadInputCanLeave(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "hog")
	r.Stdin = true
	k.start(r)
	before := countFDs(t, k.pid())
	for range 3 {
		a := k.attach("a", AttachOptions{Stdin: true})
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.Stdin().Write(make([]byte, 4<<20)) // more than all buffers on the way
		}()
		time.Sleep(50 * time.Millisecond) // lets it fill them
		a.Close()
		<-done
	}
	k.ready("a")
	deadline := time.Now().Add(hang)
	for countFDs(t, k.pid()) > before+2 {
		if time.Now().After(deadline) {
			t.Fatalf("the keeper has %d descriptors, %d before", countFDs(t, k.pid()), before)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestReplayIsWholeAndJoinsLiveOutputWithoutGap(t *testing.T) {
	k := newKeeper(t)
	const lines = 30000
	r := k.request("a", "lines", fmt.Sprint(lines))
	k.start(r)
	var attached []*Attachment
	for range 4 { // while it writes
		attached = append(attached, k.attach("a", AttachOptions{Replay: true}))
	}
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "out %d\n", i)
	}
	var readers sync.WaitGroup
	for i, a := range attached {
		readers.Go(func() {
			stdout, stderr, end, err := collect(t, a)
			if stdout != want.String() {
				t.Errorf("attachment %d got %d bytes, want %d in order", i, len(stdout), want.Len())
			}
			if len(stderr) != want.Len() || err != nil || end.Code != 0 {
				t.Errorf("attachment %d: %d bytes of stderr, end %+v %v", i, len(stderr), end, err)
			}
		})
	}
	readers.Wait()
	late := k.attach("a", AttachOptions{Replay: true})
	if stdout, _, end, err := collect(t, late); stdout != want.String() || err != nil || end.Code != 0 {
		t.Errorf("after the end: %d bytes, end %+v %v", len(stdout), end, err)
	}
}

func TestKilledClientLosesNoLogLine(t *testing.T) {
	k := newKeeper(t)
	const lines = 30000
	k.start(k.request("a", "lines", fmt.Sprint(lines)))
	a := k.attach("a", AttachOptions{})
	go io.Copy(io.Discard, a.Stderr())
	io.ReadFull(a.Stdout(), make([]byte, 1000))
	a.conn.Close() // what the kernel does for a process that is killed
	k.wait("a")
	for stream, prefix := range map[string]string{"stdout": "out", "stderr": "err"} {
		if n := strings.Count(k.logs("a", stream), prefix+" "); n != lines {
			t.Errorf("%d lines of %s in the log, want %d", n, stream, lines)
		}
	}
}

// A client that doesn't read is waited for, and dropped in the end.
func TestSlowClientIsToldThatItWasDropped(t *testing.T) {
	a := &attachment{guest: &guest{info: Guest{ID: "a"}}}
	a.changed = sync.NewCond(&a.mu)
	a.guest.attachments = []*attachment{a}
	piece := make([]byte, bufferSize)
	for len(a.queue)+len(piece) <= maxQueue {
		a.put(frameStdout, piece)
	}
	waits := make(chan struct{})
	go func() {
		defer close(waits)
		a.put(frameStdout, piece)
	}()
	select {
	case <-waits:
		t.Fatal("a full queue is not waited for")
	case <-time.After(50 * time.Millisecond):
	}
	a.drop() // what the timer does
	<-waits
	if len(a.guest.attachments) != 0 || !a.final {
		t.Error("the client is still attached")
	}
	var kinds []byte
	for r := bytes.NewReader(a.queue); r.Len() > 0; {
		kind, data, err := readFrame(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, kind)
		if kind == frameError && !bytes.Contains(data, []byte("did not read")) {
			t.Errorf("the client is told %s", data)
		}
	}
	if n := len(kinds); kinds[n-1] != frameError || bytes.Count(kinds, []byte{frameError}) != 1 {
		t.Errorf("frames %v", kinds)
	}
}

func TestSlowClientDoesNotHoldUpTheEnd(t *testing.T) {
	k := newKeeper(t)
	exits, err := k.Exits(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k.start(k.request("a", "lines", "10000000"))
	k.attach("a", AttachOptions{}) // and never reads
	// It writes until the queue, the socket and the pipe are full.
	k.follow("a", func(e LogEntry) bool { return bytes.HasPrefix(e.Data, []byte("out 8000")) })
	time.Sleep(100 * time.Millisecond)
	begin := time.Now()
	k.Signal(t.Context(), "a", unix.SIGKILL)
	<-exits
	if took := time.Since(begin); took > patience-5*time.Second {
		t.Errorf("the end took %s to be reported", took)
	}
}

func TestTerminal(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "winsize")
	r.Terminal = true
	k.start(r)
	a := k.attach("a", AttachOptions{Stdin: true, Replay: true})
	if !a.Terminal() || a.Stderr() != nil {
		t.Error("no terminal")
	}
	lines := bufio.NewReader(a.Stdout())
	expect := func(want string) {
		t.Helper()
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			if strings.Contains(line, want) {
				return
			}
		}
	}
	expect("ready 80x24\r\n")
	if err := a.Resize(132, 50); err != nil {
		t.Fatal(err)
	}
	expect("ready 132x50\r\n")

	// A second one sees what was there before, and types an interrupt.
	b := k.attach("a", AttachOptions{Stdin: true, Replay: true})
	if _, err := b.Stdin().Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	shown, _, end, err := collect(t, b)
	if err != nil || end.Signal != "" && end.Signal != "SIGINT" {
		t.Errorf("end %+v %v", end, err)
	}
	if !strings.Contains(shown, "80x24") || !strings.Contains(shown, "132x50") {
		t.Errorf("replayed %q", shown)
	}
	if log := k.logs("a", "stdout"); !strings.Contains(log, "ready 132x50\r\n") {
		t.Errorf("log %q", log)
	}
	err = a.Resize(1, 1)
	wantCode(t, err, api.CodeConflict)
}

func TestTerminalInputEndsWithTheEOFCharacter(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "cat")
	r.Terminal = true
	k.start(r)
	k.ready("a")
	a := k.attach("a", AttachOptions{Stdin: true})
	fmt.Fprint(a.Stdin(), "hello\n")
	a.Stdin().Close()
	out, _, end, err := collect(t, a)
	if err != nil || end.Code != 3 || !strings.Contains(out, "eof after 6 bytes") {
		t.Errorf("end %+v %v, output %q", end, err, out)
	}
}

func TestTerminalSurvivesHangup(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "reopen")
	r.Terminal = true
	g := k.start(r)
	k.ready("a")
	tty, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/0", g.PID), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.IoctlSetInt(int(tty.Fd()), unix.TIOCVHANGUP, 0)
	tty.Close()
	if err != nil {
		t.Fatal(err)
	}
	a := k.attach("a", AttachOptions{Replay: true})
	out, _, end, err := collect(t, a)
	if err != nil || end.Code != 0 || !strings.Contains(out, "ready") || !strings.Contains(out, "after") {
		t.Errorf("end %+v %v, output %q", end, err, out)
	}
}

func TestFIFOsBelongToTheGuest(t *testing.T) {
	k := newKeeper(t)
	r := k.request("a", "cat")
	r.Stdin = true
	k.start(r)
	for name, mode := range map[string]os.FileMode{"stdin": 0o600, "stdout": 0o620, "stderr": 0o620} {
		st, err := os.Lstat(filepath.Join(r.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != os.ModeNamedPipe|mode || st.Sys().(*syscall.Stat_t).Uid != testOwner {
			t.Errorf("%s: %s, uid %d", name, st.Mode(), st.Sys().(*syscall.Stat_t).Uid)
		}
	}
	k.Signal(t.Context(), "a", unix.SIGKILL)
	k.wait("a")
	if left, _ := filepath.Glob(r.Dir + "/std*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
