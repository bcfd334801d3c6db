package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// host is one daemon with its own directories.
type host struct {
	t    *testing.T
	bin  string
	data string
	run  string
	args []string // further flags of cleaved
	cmd  *exec.Cmd
	log  *os.File
}

// newHost starts a daemon, and takes it down after the test.
func newHost(t *testing.T, args ...string) *host {
	t.Helper()
	return newHostAt(t, "", args...)
}

// newHostAt starts a daemon with its data in a given directory.
func newHostAt(t *testing.T, data string, args ...string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, namespaces and cgroups are real")
	}
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(bin, "cleaved")); err != nil {
		t.Fatalf("no binaries: %v (make build)", err)
	}
	// Paths of sockets are short, so t.TempDir won't do.
	dir, err := os.MkdirTemp("", "cle2e")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, bin: bin, data: cmp.Or(data, filepath.Join(dir, "data")), run: filepath.Join(dir, "run"), args: args}
	t.Cleanup(func() {
		h.down()
		// The last processes are ending, the kernel frees loop devices lazily.
		left := h.inventory()
		for end := time.Now().Add(patience); len(left) > 0 && time.Now().Before(end); left = h.inventory() {
			time.Sleep(100 * time.Millisecond)
		}
		if len(left) > 0 {
			t.Errorf("left on the host:\n  %s", strings.Join(left, "\n  "))
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("log of the daemon:\n%s", tail(b, 4000))
		}
		os.RemoveAll(dir)
	})
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	h.start()
	return h
}

func tail(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

// start runs the daemon and returns when it serves.
func (h *host) start() {
	h.t.Helper()
	ready, tell, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	defer ready.Close()
	h.cmd = exec.Command(filepath.Join(h.bin, "cleaved"), append([]string{"--data", h.data, "--run", h.run}, h.args...)...)
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	h.cmd.ExtraFiles = []*os.File{tell}
	h.cmd.Env = append(os.Environ(), "CLEAVE_READY_FD=3")
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = h.cmd.Start()
	tell.Close()
	if err != nil {
		h.t.Fatal(err)
	}
	if word, _ := io.ReadAll(ready); string(word) != "ready" {
		_ = h.cmd.Wait()
		h.cmd = nil
		h.t.Fatal("the daemon does not start")
	}
}

// kill ends the daemon the hard way.
func (h *host) kill() {
	h.t.Helper()
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// stop ends the daemon in order; guests go on.
func (h *host) stop() {
	h.t.Helper()
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("daemon: %v", err)
	}
}

// down stops all guests and takes everything off the host.
func (h *host) down() {
	if h.cmd == nil {
		return
	}
	if h.cmd.ProcessState != nil {
		h.start()
	}
	_ = h.cmd.Process.Signal(syscall.SIGPWR)
	if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("taking the host down: %v", err)
	}
	h.cmd = nil
}

// result is what a command of the CLI came to.
type result struct {
	out, err string
	code     int
}

// try runs the CLI with stdin.
func (h *host) tryIn(stdin io.Reader, args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(h.bin, "cleave"), args...)
	c.Env = append(os.Environ(), "CLEAVE_SOCKET="+filepath.Join(h.run, "cleave.sock"))
	c.Stdin = stdin
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	err := c.Run()
	var x *exec.ExitError
	if err != nil && !errors.As(err, &x) {
		h.t.Fatalf("cleave %s: %v", strings.Join(args, " "), err)
	}
	return result{out.String(), errb.String(), c.ProcessState.ExitCode()}
}

func (h *host) try(args ...string) result {
	h.t.Helper()
	return h.tryIn(nil, args...)
}

// do runs the CLI and fails the test if it fails.
func (h *host) do(args ...string) string {
	h.t.Helper()
	r := h.try(args...)
	if r.code != 0 {
		h.t.Fatalf("cleave %s: status %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// refused runs the CLI and wants it to fail with a message that matches.
func (h *host) refused(pattern string, args ...string) {
	h.t.Helper()
	r := h.try(args...)
	if r.code == 0 || !regexp.MustCompile(pattern).MatchString(r.err) {
		h.t.Errorf("cleave %s: status %d, want a failure like %q\n%s%s", strings.Join(args, " "), r.code, pattern, r.out, r.err)
	}
}

// show reads an instance.
func (h *host) show(name string) api.Instance {
	h.t.Helper()
	var in api.Instance
	if err := json.Unmarshal([]byte(h.do("show", name, "-o", "json")), &in); err != nil {
		h.t.Fatal(err)
	}
	return in
}

// names lists the instances.
func (h *host) names() []string {
	h.t.Helper()
	return strings.Fields(h.do("list", "-o", "name"))
}

// patience ends what hangs; it says nothing of how fast a machine is.
const patience = 2 * time.Minute

// eventually waits for what no event tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// inventory lists what this host's daemon has or has left on the machine.
// Other daemons may run beside it.
func (h *host) inventory() []string {
	h.t.Helper()
	sum := sha256.Sum256([]byte(h.data))
	scope := hex.EncodeToString(sum[:3])
	var all []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], h.run) || strings.HasPrefix(f[4], h.data)) {
			all = append(all, "mount "+f[4])
		}
	}
	for _, pattern := range []string{"/sys/class/net/clv" + scope + "*", "/sys/fs/cgroup/cleave-" + scope, "/sys/fs/cgroup/*/cleave-" + scope} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	for _, id := range h.instances() {
		found, _ := filepath.Glob("/sys/class/net/c" + id + "n*")
		all = append(all, found...)
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, _ := os.ReadFile(l); strings.HasPrefix(string(b), h.data) {
			all = append(all, "loop "+l)
		}
	}
	if out, err := exec.Command("nft", "list", "tables").Output(); err == nil && strings.Contains(string(out), scope) {
		all = append(all, "nft table "+scope)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		cmd, _ := os.ReadFile(p)
		group, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cgroup"))
		if bytes.Contains(cmd, []byte(h.run)) || bytes.Contains(group, []byte("cleave-"+scope)) {
			all = append(all, fmt.Sprintf("process %s %q", filepath.Base(filepath.Dir(p)), cmd))
		}
	}
	return all
}

// instances are the ids of all instances that there ever were, by the events.
func (h *host) instances() []string {
	b, _ := os.ReadFile(filepath.Join(h.data, "events.jsonl"))
	ids := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		var e api.Event
		if json.Unmarshal([]byte(line), &e) == nil && strings.HasPrefix(e.Type, "instance.") {
			ids[e.Target] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}
