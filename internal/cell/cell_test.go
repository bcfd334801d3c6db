package cell

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script string) Command {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can build cells")
	}
	return Command{
		Args: []string{"sh", "-c", script}, Dir: t.TempDir(),
		Memory: 1 << 30, FileSize: 1 << 20, CPU: 10 * time.Second,
	}
}

func temp(t *testing.T, content string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestProgramSeesItsFilesAndNothingElse(t *testing.T) {
	c := shell(t, `set -e; cat /in; tr a-z A-Z </in >/out; id -u
		ls / | tr '\n' ' '; ls /etc; ls -A /proc; echo pid $$; ulimit -c; ulimit -f`)
	var out bytes.Buffer
	in, target := temp(t, "hello\n"), temp(t, "")
	c.Files, c.Writable, c.Output = map[string]*os.File{"in": in, "out": target}, map[string]bool{"out": true}, &out
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if lines[0] != "hello" || lines[1] != "2147405329" {
		t.Errorf("it saw %q", lines)
	}
	for name := range strings.FieldsSeq(lines[2][:strings.Index(lines[2], "usr")+3]) {
		switch name {
		case "proc": // an empty directory by now
		case "bin", "etc", "in", "lib", "lib32", "lib64", "libx32", "out", "sbin", "usr", "nix", "gnu":
		default:
			t.Errorf("/%s is there", name)
		}
	}
	if !strings.Contains(out.String(), "pid 1\n") {
		t.Errorf("it isn't alone: %s", out.String())
	}
	if !strings.Contains(out.String(), "ld.so.cache\npid 1") {
		t.Errorf("/etc or /proc holds something: %s", out.String())
	}
	if b, err := os.ReadFile(target.Name()); err != nil || string(b) != "HELLO\n" {
		t.Errorf("it wrote %q: %v", b, err)
	}
	for _, f := range []*os.File{in, target} {
		if st, err := f.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s still belongs to the cell's user: %v", f.Name(), err)
		}
	}
}

func TestProgramCantWriteWhatItMayNot(t *testing.T) {
	for _, script := range []string{"echo x >/in", "echo x >/new", "echo x >/usr/new", "echo x >/usr/bin/sh"} {
		c := shell(t, script)
		in := temp(t, "a")
		c.Files = map[string]*os.File{"in": in}
		var f *Failure
		if err := Run(t.Context(), c); !errors.As(err, &f) {
			t.Errorf("%s: %v", script, err)
		}
		if b, _ := os.ReadFile(in.Name()); string(b) != "a" {
			t.Errorf("%s changed it to %q", script, b)
		}
	}
}

func TestProgramHasNoNetworkAndNoPrivileges(t *testing.T) {
	var out bytes.Buffer
	c := shell(t, `grep -E 'x' /proc/self/status 2>&1; unshare -r true 2>&1 && echo unshared; mount -t tmpfs x /usr 2>&1; kill -9 -1 2>&1; echo end`)
	c.Output = &out
	if err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(out.String(), "end\n") {
		t.Errorf("it said %s", out.String())
	}
}

func TestLimitsHold(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		limit  func(*Command)
		signal syscall.Signal
	}{
		"file size": {"exec dd if=/usr/bin/sh of=/out bs=1k count=100000 seek=2000 conv=notrunc", func(*Command) {}, 0},
		"cpu":       {"while :; do :; done", func(c *Command) { c.CPU = time.Second }, syscall.SIGKILL},
		"memory":    {"exec head -c 200000000 </in | tail -c 200000000", func(c *Command) { c.Memory = 64 << 20 }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := shell(t, tt.script)
			big := temp(t, "")
			if err := big.Truncate(1 << 30); err != nil {
				t.Fatal(err)
			}
			c.Files, c.Writable = map[string]*os.File{"out": temp(t, ""), "in": big}, map[string]bool{"out": true}
			tt.limit(&c)
			var f *Failure
			if err := Run(t.Context(), c); !errors.As(err, &f) || f.Signal() != tt.signal {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestProgramEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	// The descendant goes too: the output ends.
	if err := Run(ctx, shell(t, "sleep 1000 & sleep 1000")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestFailureTellsLastWords(t *testing.T) {
	err := Run(t.Context(), shell(t, "echo what is wrong >&2; exit 3"))
	if err == nil || err.Error() != "sh: exit status 3: what is wrong" {
		t.Errorf("got %v", err)
	}
}
