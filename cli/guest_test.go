package cli

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/google/go-cmp/cmp"
)

func TestExecPassesStatusAndStreams(t *testing.T) {
	f := newFake(t)
	for _, tt := range []struct {
		name, stdin string
		args        []string
		status      int
		out, err    string
	}{
		{"status", "", []string{"exec", "web", "--", "sh", "-c", "exit 7"}, 7, "", ""},
		{"death by signal", "", []string{"exec", "web", "--", "sh", "-c", "kill -9 $$"}, 137, "", ""},
		{"both outputs", "", []string{"exec", "web", "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		{"stdin", "hi\n", []string{"exec", "-i", "web", "--", "cat"}, 0, "hi\n", ""},
		{"no stdin unless asked", "hi\n", []string{"exec", "web", "--", "cat"}, 0, "", ""},
		{"flags after the name", "hi\n", []string{"exec", "web", "-i", "--", "cat"}, 0, "hi\n", ""},
		{"the command's own flags", "", []string{"exec", "web", "echo", "-e", "-i", "--", "x"}, 0, "-i -- x\n", ""},
		{"environment", "", []string{"exec", "-e", "A=b c", "web", "--", "sh", "-c", "echo $A"}, 0, "b c\n", ""},
		{"a missing command", "", []string{"exec", "web", "--", "/no/such"}, 1, "", "cleave: starting /no/such: fork/exec /no/such: no such file or directory\n"},
		{"a shell without a terminal", "echo $0; exit 3\n", []string{"shell", "web"}, 3, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status, out, errs := f.cleave(tt.stdin, tt.args...)
			if tt.name == "a shell without a terminal" {
				if status != 3 || !strings.Contains(out, "sh") {
					t.Errorf("%d %q %q", status, out, errs)
				}
				return
			}
			if tt.name == "the command's own flags" { // echo -e differs between shells' and coreutils'
				out = strings.TrimPrefix(out, "-e ")
			}
			if status != tt.status || out != tt.out || errs != tt.err {
				t.Errorf("%d %q %q", status, out, errs)
			}
		})
	}
}

func TestExecIsBinarySafe(t *testing.T) {
	f := newFake(t)
	data := make([]byte, 5<<20)
	rand.Read(data)
	status, out, errs := run(t, f.socket, bytes.NewReader(data), "exec", "-i", "web", "--", "cat")
	if status != 0 || errs != "" || !bytes.Equal([]byte(out), data) {
		t.Errorf("%d %q: %d bytes of %d", status, errs, len(out), len(data))
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	f := newFake(t)
	f.seen = func(out string) {
		if out == "ready\n" {
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}
	}
	status, out, _ := f.cleave("", "exec", "web", "--", "sh", "-c", "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done")
	if status != 9 || out != "ready\ncaught\n" {
		t.Errorf("%d %q", status, out)
	}
}

func TestRunIsTheCommandsEnd(t *testing.T) {
	f := newFake(t)
	status, out, errs := f.cleave("", "run", "--rm", "base", "--", "sh", "-c", "echo made; exit 7")
	if status != 7 || out != "made\n" || errs != "" {
		t.Errorf("%d %q %q", status, out, errs)
	}
	madeUp := regexp.MustCompile(`("name":"|/instances/)[a-z]+-[a-z]+`)
	var got []string
	for _, r := range f.took() {
		got = append(got, madeUp.ReplaceAllString(r, "${1}NAME"))
	}
	want := []string{
		`POST /instances {"name":"NAME","spec":{"image":"base","command":["sh","-c","echo made; exit 7"],"ephemeral":true}}`,
		`POST /instances/NAME/console {"start":true}`,
		`GET /streams/t0`,
		`DELETE /instances/NAME?force=true`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if status, out, _ := f.cleave("data", "run", "-i", "base", "cat"); status != 0 || out != "data" {
		t.Errorf("%d %q", status, out)
	}
	if status, out, _ := f.cleave("", "run", "-d", "--name", "back", "base", "--", "sleep", "1"); status != 0 || out != "back\n" {
		t.Errorf("%d %q", status, out)
	}
	f.took()
	if status, _, errs := f.cleave("", "run", "--rm", "--name", "broken", "base", "--", "/no/such"); status != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("%d %q", status, errs)
	}
	if got := f.took(); got[len(got)-1] != "DELETE /instances/broken?force=true" {
		t.Errorf("an ephemeral instance that never began is left: %q", got)
	}
}

func TestInterruptCancelsTheOperation(t *testing.T) {
	f := newFake(t)
	f.operation = func(op *api.Operation) { op.State, op.Step = api.OperationRunning, "downloading" }
	var once sync.Once
	f.seen = func(string) { once.Do(func() { syscall.Kill(os.Getpid(), syscall.SIGINT) }) }
	status, out, errs := f.cleave("", "launch", "base", "web")
	if status != 1 || out != "" || !strings.Contains(errs, "instance.create of web was cancelled") {
		t.Errorf("%d %q %q", status, out, errs)
	}
	if got := f.took(); !strings.HasPrefix(got[len(got)-1], "POST /operations/op0/cancel") {
		t.Error(got)
	}
}

func TestDetachKeys(t *testing.T) {
	for _, tt := range []struct {
		keys, in, out string
		detached      bool
	}{
		{"ctrl-a,q", "abc", "abc", false},
		{"ctrl-a,q", "ab\x01qcd", "ab", true},
		{"ctrl-a,q", "\x01\x01x", "\x01x", false},
		{"ctrl-a,q", "\x01x", "\x01x", false},
		{"ctrl-a,q", "x\x01", "x\x01", false},
		{"ctrl-p,ctrl-q", "\x10\x11", "", true},
		{"a,b,c", "aab-abc", "ab-", true},
		{"none", "\x01q", "\x01q", false},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			var k detachKeys
			if err := k.Set(tt.keys); err != nil {
				t.Fatal(err)
			}
			out, err := io.ReadAll(k.reader(wrap(strings.NewReader(tt.in))))
			if string(out) != tt.out || errors.Is(err, client.ErrDetached) != tt.detached {
				t.Errorf("%s %q %s: got %q, %v", tt.keys, tt.in, name, out, err)
			}
		}
	}
	var k detachKeys
	if k.Set("ctrl-1") == nil || k.Set("esc") == nil {
		t.Error("nonsense is taken")
	}
}

func TestParsePlace(t *testing.T) {
	for in, want := range map[string]place{
		"web:/etc/hosts": {"web", "/etc/hosts"}, "web:etc": {"web", "/etc"}, "web:": {"web", "/"}, "web:/": {"web", "/"},
		"web:/a/../b": {"web", "/b"}, "web:/a/.": {"web", "/a/."}, "web:/a/": {"web", "/a/"}, "web:../..": {"web", "/"},
		"./a:b": {"", "./a:b"}, "/a:b": {"", "/a:b"}, "file": {"", "file"}, "-": {"", "-"}, "C:x": {"", "C:x"}, "a/b:c": {"", "a/b:c"},
	} {
		if got := parsePlace(in); got != want {
			t.Errorf("%s: %+v", in, got)
		}
	}
}

// files makes a tree from name=content.
func files(t *testing.T, dir string, list ...string) {
	t.Helper()
	for _, f := range list {
		name, content, _ := strings.Cut(f, "=")
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// contents lists the files below dir as name=content.
func contents(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			b, _ := os.ReadFile(p)
			rel, _ := filepath.Rel(dir, p)
			out = append(out, rel+"="+string(b))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCpOutOfAGuest(t *testing.T) {
	for _, tt := range []struct {
		source, target string
		want           []string
		fails          string
	}{
		{"web:/f", ".", []string{"f=1", "here/x=0"}, ""},
		{"web:/f", "here", []string{"here/f=1", "here/x=0"}, ""},
		{"web:/f", "here/x", []string{"here/x=1"}, ""},
		{"web:/f", "new", []string{"here/x=0", "new=1"}, ""},
		{"web:/d", "here", []string{"here/d/a=2", "here/d/s/b=3", "here/x=0"}, ""},
		{"web:/d", "new", []string{"here/x=0", "new/a=2", "new/s/b=3"}, ""},
		{"web:/d/.", "here", []string{"here/a=2", "here/s/b=3", "here/x=0"}, ""},
		{"web:/d/", "new", []string{"here/x=0", "new/a=2", "new/s/b=3"}, ""},
		{"web:/d/.", "new", []string{"here/x=0", "new/a=2", "new/s/b=3"}, ""},
		{"web:/d", "here/x", []string{"here/x=0"}, "no directory"},
		{"web:/none", ".", []string{"here/x=0"}, "no such file"},
		{"web:/f", "none/deep", []string{"here/x=0"}, "no such file"},
	} {
		t.Run(tt.source+" "+tt.target, func(t *testing.T) {
			f := newFake(t)
			files(t, f.root, "f=1", "d/a=2", "d/s/b=3")
			dir := t.TempDir()
			files(t, dir, "here/x=0")
			t.Chdir(dir)
			status, out, errs := f.cleave("", "cp", tt.source, tt.target)
			if (status != 0) != (tt.fails != "") || !strings.Contains(errs, tt.fails) || out != "" {
				t.Errorf("%d %q %q", status, out, errs)
			}
			if diff := cmp.Diff(tt.want, contents(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCpIntoAGuest(t *testing.T) {
	for _, tt := range []struct {
		source, target string
		want           []string
		fails          string
	}{
		{"d", "web:/g", []string{"g/d/a=2", "g/d/s/b=3", "g/x=0"}, ""},
		{"d", "web:/new", []string{"g/x=0", "new/a=2", "new/s/b=3"}, ""},
		{"d/.", "web:/g", []string{"g/a=2", "g/s/b=3", "g/x=0"}, ""},
		{"d/s/..", "web:/g", []string{"g/d/a=2", "g/d/s/b=3", "g/x=0"}, ""},
		{"d", "web:/link", []string{"g/d/a=2", "g/d/s/b=3", "g/x=0"}, ""},
		{"d", "other:/none/deep", []string{"g/x=0"}, "no such directory"},
		{"none", "web:/g", []string{"g/x=0"}, "no such file"},
		{"f/.", "web:/g", []string{"g/x=0"}, "is no directory"},
		{"f", "web:/none/", []string{"g/x=0"}, "no such directory"},
		{"web:/g", "other:/copy", []string{"copy/x=0", "g/x=0"}, ""},
	} {
		t.Run(tt.source+" "+tt.target, func(t *testing.T) {
			f := newFake(t)
			files(t, f.root, "g/x=0")
			if err := os.Symlink("g", filepath.Join(f.root, "link")); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			files(t, dir, "f=1", "d/a=2", "d/s/b=3")
			t.Chdir(dir)
			status, _, errs := f.cleave("", "cp", tt.source, tt.target)
			if (status != 0) != (tt.fails != "") || !strings.Contains(errs, tt.fails) {
				t.Errorf("%d %q", status, errs)
			}
			if diff := cmp.Diff(tt.want, contents(t, f.root)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCpOfArchives(t *testing.T) {
	f := newFake(t)
	files(t, f.root, "g/x=0", "to/y=1")
	status, archive, errs := f.cleave("", "cp", "web:/g", "-")
	if status != 0 || errs != "" || !strings.Contains(archive, "ustar") {
		t.Fatal(status, errs)
	}
	if status, _, errs := run(t, f.socket, strings.NewReader(archive), "cp", "-", "web:/to"); status != 0 {
		t.Fatal(errs)
	}
	if diff := cmp.Diff([]string{"g/x=0", "to/g/x=0", "to/y=1"}, contents(t, f.root)); diff != "" {
		t.Error(diff)
	}
}
