package mconsole

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// place makes the directories of a console.
func place(t *testing.T) *Console {
	t.Helper()
	dir, err := os.MkdirTemp("", "mc") // t.TempDir's are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &Console{Dir: filepath.Join(dir, "m"), Name: "u/mconsole", Replies: filepath.Join(dir, "r")}
	for _, d := range []string{filepath.Join(c.Dir, "u"), c.Replies} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// serve plays a guest's kernel that answers each command with packets.
func serve(t *testing.T, c *Console, packets ...[]byte) {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(c.Dir, c.Name), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends when l is closed
		b := make([]byte, requestSize+1)
		for {
			n, from, err := l.ReadFromUnix(b)
			if err != nil {
				return
			}
			if n != requestSize || binary.NativeEndian.Uint32(b) != magic || binary.NativeEndian.Uint32(b[4:]) != version {
				t.Errorf("request %q", b[:n])
			}
			for _, p := range packets {
				_, _ = l.WriteToUnix(p, from)
			}
		}
	}()
}

func reply(failed, more uint32, text string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, failed)
	b = binary.NativeEndian.AppendUint32(b, more)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(text)+1))
	return append(append(b, text...), 0)
}

func TestAnswersArePutTogetherAndBounded(t *testing.T) {
	endless := make([][]byte, mostReplies+5)
	for i := range endless {
		endless[i] = reply(0, 1, "x")
	}
	for name, test := range map[string]struct {
		packets [][]byte
		want    string
		failure string
	}{
		"one packet":    {[][]byte{reply(0, 0, "stopped")}, "stopped", ""},
		"three packets": {[][]byte{reply(0, 1, "a"), reply(0, 1, "b"), reply(0, 0, "c")}, "abc", ""},
		"refused":       {[][]byte{reply(1, 0, "Not stopped")}, "", `"Not stopped"`},
		"endless":       {endless, "", "no end"},
		"none":          {nil, "", "no answer"},
		"short":         {[][]byte{{1, 2, 3}}, "", "3 bytes"},
		"too long":      {[][]byte{make([]byte, 4096)}, "", "bytes"},
		"lies":          {[][]byte{append(reply(0, 0, "x")[:8], 0xff, 0xff, 0xff, 0xff)}, "", "says it has"},
		"no text":       {[][]byte{reply(0, 0, "\xff\xfe")}, "?", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := place(t)
			serve(t, c, test.packets...)
			got, err := c.Command(within(t, 500*time.Millisecond), "version")
			if got != test.want || (err == nil) != (test.failure == "") || err != nil && !strings.Contains(err.Error(), test.failure) {
				t.Errorf("got %q, %v, want %q, %q", got, err, test.want, test.failure)
			}
			if left, err := os.ReadDir(c.Replies); err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

func TestCommandsAreBounded(t *testing.T) {
	c := place(t)
	serve(t, c, reply(0, 0, ""))
	for _, command := range []string{strings.Repeat("x", maxData), "a\x00b"} {
		if _, err := c.Command(t.Context(), command); err == nil {
			t.Errorf("sent %q", command)
		}
	}
}

// What isn't there fails at once, and what a guest put there instead isn't
// spoken to.
func TestOnlyTheGuestsOwnSocketIsSpokenTo(t *testing.T) {
	other := place(t)
	serve(t, other, reply(0, 0, "of somebody else"))
	theirs := filepath.Join(other.Dir, other.Name)
	for name, make := range map[string]func(at, dir string) error{
		"nothing":           func(string, string) error { return nil },
		"file":              func(at, _ string) error { return os.WriteFile(at, nil, 0o600) },
		"link":              func(at, _ string) error { return os.Symlink(theirs, at) },
		"link on the way":   func(_, dir string) error { _ = os.Remove(dir); return os.Symlink(filepath.Dir(theirs), dir) },
		"way out by dotdot": func(_, dir string) error { _ = os.Remove(dir); return os.Symlink("../../"+other.Dir+"/u", dir) },
	} {
		t.Run(name, func(t *testing.T) {
			c := place(t)
			at := filepath.Join(c.Dir, c.Name)
			if err := make(at, filepath.Dir(at)); err != nil {
				t.Fatal(err)
			}
			if got, err := c.Command(within(t, 5*time.Second), "version"); err == nil {
				t.Errorf("answered %q", got)
			}
		})
	}
}

func FuzzParseReply(f *testing.F) {
	f.Add(reply(0, 0, "text"))
	f.Add(reply(1, 1, ""))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		text, more, err := parseReply(b)
		if len(text) > 3*maxData || err != nil && (text != "" || more) {
			t.Errorf("%d bytes, %v, %v", len(text), more, err)
		}
	})
}

func TestARealKernelAnswersPausesAndGoesOn(t *testing.T) {
	program, err := exec.LookPath("linux.uml")
	if err != nil {
		t.Skip("User Mode Linux is not installed (package user-mode-linux)")
	}
	c := place(t)
	cmd := exec.Command(program, "mem=64M", "rootfstype=hostfs", "root=/dev/root", "init=/bin/sleep", "con=null", "con0=null", "ssl=null",
		"uml_dir="+c.Dir, "umid=u", "quiet", "--", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var end error
	go func() { end = cmd.Wait(); close(ended) }()
	// It leads a group of its own, with the processes of its guest.
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); <-ended })
	ctx := within(t, 2*time.Minute)
	var answer string
	for answer == "" { // its socket comes while it boots
		if answer, err = c.Command(ctx, "version"); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !strings.HasPrefix(answer, "Linux ") {
		t.Errorf("version %q", answer)
	}
	var refused *Error
	for _, step := range []struct{ command, answer, refusal string }{
		{"go", "", "Not stopped"},
		{"stop", "stopped", ""},
		{"stop", "", "Already stopped"},
		{"version", "Linux ", ""},
		{"go", "", ""},
		{"version", "Linux ", ""},
		{"no such command", "", "Unknown command"},
	} {
		got, err := c.Command(ctx, step.command)
		if !strings.HasPrefix(got, step.answer) || step.refusal == "" && err != nil || step.refusal != "" && (!errors.As(err, &refused) || refused.Message != step.refusal) {
			t.Errorf("%s: %q, %v", step.command, got, err)
		}
	}
	if _, err := c.Command(ctx, "halt"); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
		if end != nil {
			t.Errorf("ended by %v", end)
		}
	case <-ctx.Done():
		t.Error("it was told to halt and runs")
	}
}
