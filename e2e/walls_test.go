package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cleave-project/cleave/api"
)

// kinds are the walls, and what a kernel of their own is fetched by.
var kinds = []string{"container", "pvm", "vm"}

// newWalls starts a daemon with what machines boot from.
func newWalls(t *testing.T) *host {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skipf("needs an emulator: %v (install qemu-system-x86)", err)
	}
	h := newHost(t)
	for _, kind := range kinds[1:] {
		h.do("kernel", "fetch", "debian", "--kind", kind)
	}
	return h
}

// TestThreeWalls runs the same image behind every wall, and does the same to
// each guest.
func TestThreeWalls(t *testing.T) {
	h := newWalls(t)
	port := map[string]string{}
	for i, kind := range kinds {
		port[kind] = fmt.Sprint(18081 + i)
		h.do("launch", "base", kind, "--kind", kind, "--restart", "always", "--publish", port[kind]+":80", "--", "sh", "-c", "echo told; echo warned >&2; exec httpd -f -p 80 -h /etc")
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			h := h.in(t)
			t.Run("exec", h.on(kind).exec)
			t.Run("files", h.on(kind).files)
			t.Run("network", func(t *testing.T) { h.on(kind).network(t, port[kind]) })
			t.Run("what it says and uses", h.on(kind).observed)
			t.Run("power", h.on(kind).power)
		})
	}
	t.Run("monitors may die", h.monitorsDie)
	t.Run("the daemon may die", h.daemonDies)
}

// in is the same host for a subtest.
func (h *host) in(t *testing.T) *host {
	c := *h
	c.t = t
	return &c
}

// guest is one guest of a host.
type guest struct {
	h    *host
	name string
}

func (h *host) on(name string) guest { return guest{h, name} }

func (g guest) exec(t *testing.T) {
	h := g.h.in(t)
	for _, want := range []int{0, 7, 255} {
		if r := h.try("exec", g.name, "--", "sh", "-c", fmt.Sprintf("exit %d", want)); r.code != want {
			t.Errorf("%+v, want %d", r, want)
		}
	}
	if r := h.try("exec", g.name, "--", "hostname"); r.out != g.name+"\n" {
		t.Errorf("%+v", r)
	}
	data := make([]byte, 256<<10)
	_, _ = rand.Read(data)
	if r := h.tryIn(bytes.NewReader(data), "exec", "-i", g.name, "--", "cat"); r.code != 0 || r.out != string(data) {
		t.Errorf("status %d, %d bytes, equal %v %s", r.code, len(r.out), r.out == string(data), r.err)
	}
}

func (g guest) files(t *testing.T) {
	h := g.h.in(t)
	dir := t.TempDir()
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	if err := os.WriteFile(src, data, 0o640); err != nil {
		t.Fatal(err)
	}
	h.do("cp", src, g.name+":/root/big")
	if sum, want := h.do("exec", g.name, "--", "sha256sum", "/root/big"), fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(sum, want) {
		t.Errorf("inside: %s, want %s", sum, want)
	}
	h.do("cp", g.name+":/root/big", dst)
	if back, err := os.ReadFile(dst); err != nil || !bytes.Equal(back, data) {
		t.Errorf("came back different: %v", err)
	}
}

func (g guest) network(t *testing.T, port string) {
	h := g.h.in(t)
	eventually(t, "the published port answers", func() bool {
		r, err := http.Get("http://127.0.0.1:" + port + "/hostname")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return strings.TrimSpace(string(b)) == g.name
	})
	for _, other := range kinds {
		if r := h.try("exec", g.name, "--", "wget", "-qO-", "http://"+other+"/hostname"); strings.TrimSpace(r.out) != other {
			t.Errorf("%s from %s: %+v", other, g.name, r)
		}
	}
}

func (g guest) observed(t *testing.T) {
	h := g.h.in(t)
	eventually(t, "both lines are in the log", func() bool {
		r := h.try("logs", g.name)
		return strings.Contains(r.out, "told") && strings.Contains(r.err, "warned")
	})
	if r := h.try("logs", g.name); strings.TrimSpace(r.out) != "told" || strings.TrimSpace(r.err) != "warned" {
		t.Errorf("the log holds more than the guest wrote: %+v", r)
	}
	if out := h.do("stats", g.name, "-o", "json"); !strings.Contains(out, `"memory"`) || strings.Contains(out, `"memory": 0,`) {
		t.Errorf("stats: %s", out)
	}
	in := h.show(g.name)
	if in.Status.Engine == "" || in.Status.Phase != api.PhaseRunning {
		t.Errorf("%+v", in.Status)
	}
	if machine := in.Spec.Kind == api.KindPVM || in.Spec.Kind == api.KindVM; machine != (in.Status.Kernel != "") || machine != (in.Status.Agent == "cleave") {
		t.Errorf("kernel %q, agent %q", in.Status.Kernel, in.Status.Agent)
	}
}

func (g guest) power(t *testing.T) {
	h := g.h.in(t)
	h.do("exec", g.name, "--", "sh", "-c", "echo kept >/root/file; sync")
	before := h.show(g.name).Status
	h.do("pause", g.name)
	h.refused("paused", "exec", g.name, "--", "true")
	h.do("resume", g.name)
	h.do("restart", g.name)
	after := h.show(g.name).Status
	if after.PID == before.PID || after.NICs[0].IPv4 != before.NICs[0].IPv4 {
		t.Errorf("before %+v after %+v", before, after)
	}
	if out := h.do("exec", g.name, "--", "cat", "/root/file"); out != "kept\n" {
		t.Errorf("after a restart the file says %q", out)
	}
}

// daemonDies kills the daemon while guests of all kinds run, and others end.
func (h *host) daemonDies(t *testing.T) {
	parent := h.t
	h.t = t
	defer func() { h.t = parent }()
	addr, _, _ := strings.Cut(h.show("container").Status.NICs[0].IPv4, "/") // names need the daemon
	pids, brief := map[string]int{}, map[string]int{}
	for _, kind := range kinds {
		pids[kind] = h.show(kind).Status.PID
		h.do("launch", "base", "brief-"+kind, "--kind", kind, "--", "sh", "-c", "until wget -qO /dev/null http://"+addr+"/go; do sleep 0.3; done; exit 9")
		brief[kind] = h.show("brief-" + kind).Status.PID
	}
	h.do("exec", "container", "--", "sh", "-c", "setsid sh -c 'sleep 3; touch /etc/go' </dev/null >/dev/null 2>&1 &")
	h.kill()
	for _, kind := range kinds {
		eventually(t, kind+" ends without a daemon", func() bool { return syscall.Kill(brief[kind], 0) != nil })
	}
	h.start()
	for _, kind := range kinds {
		if in := h.show(kind); in.Status.PID != pids[kind] || in.Status.Phase != api.PhaseRunning {
			t.Errorf("%s is not the guest of before: %+v", kind, in.Status)
		}
		h.do("exec", kind, "--", "true")
		eventually(t, "the exit status is known", func() bool {
			s := h.show("brief-" + kind).Status
			return s.Phase == api.PhaseStopped && s.Exit != nil && s.Exit.Code == 9
		})
		h.do("delete", "brief-"+kind)
	}
}

// monitorsDie kills each monitor: that is seen, told apart, and mended by the
// guest's policy.
func (h *host) monitorsDie(t *testing.T) {
	h = h.in(t)
	for _, kind := range kinds {
		before := h.show(kind).Status
		if err := kill9(before.PID); err != nil {
			t.Fatal(err)
		}
		eventually(t, kind+" runs again", func() bool {
			s := h.show(kind).Status
			return s.Phase == api.PhaseRunning && s.PID != before.PID && s.Restarts > before.Restarts
		})
		h.do("exec", kind, "--", "true")
		events := h.do("events", "--since", "10m", "--follow=false")
		want := "its monitor crashed"
		if kind == "container" {
			want = "SIGKILL"
		}
		if !slices.ContainsFunc(strings.Split(events, "\n"), func(l string) bool { return strings.Contains(l, " "+kind+" ") && strings.Contains(l, want) }) {
			t.Errorf("no event of %s says %q:\n%s", kind, want, events)
		}
	}
}
