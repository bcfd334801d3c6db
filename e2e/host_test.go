package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTwoDaemonsSideBySide(t *testing.T) {
	a, b := newHost(t), newHost(t)
	for _, h := range []*host{a, b} {
		h.do("launch", "base", "web", "--", "httpd", "-f", "-p", "80", "-h", "/etc")
		h.do("exec", "web", "--", "sh", "-c", "echo "+h.run+" >/etc/who")
	}
	for _, h := range []*host{a, b} {
		if r := h.try("run", "--rm", "base", "--", "wget", "-qO-", "http://web/who"); strings.TrimSpace(r.out) != h.run {
			t.Errorf("%s sees %+v", h.run, r)
		}
	}
	ipA := strings.Split(a.show("web").Status.NICs[0].IPv4, "/")[0]
	if r := b.try("run", "--rm", "base", "--", "wget", "-T", "2", "-qO-", "http://"+ipA+"/who"); r.code == 0 {
		t.Errorf("a guest of one daemon reaches the other's: %+v", r)
	}
}

func TestOneDataDirectoryHasOneDaemon(t *testing.T) {
	h := newHost(t)
	c := exec.Command(filepath.Join(h.bin, "cleaved"), "--data", h.data, "--run", h.run+"2")
	out, err := c.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another cleaved") {
		t.Errorf("%v: %s", err, out)
	}
	h.do("list")
}

func TestStaleSocketsAndLocksAreNoObstacle(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "a")
	h.kill() // leaves its socket, its lock's file and the keeper's
	if _, err := os.Stat(filepath.Join(h.run, "cleave.sock")); err != nil {
		t.Fatal("the socket is gone: nothing stale to test with")
	}
	if err := os.WriteFile(filepath.Join(h.data, "lock"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.do("exec", "a", "--", "true")
}

// TestFullDisk fills the disk under the data directory while guests run and
// are launched. What is there stays usable; what can't be had is refused
// with the reason; with space again all goes on.
func TestFullDisk(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.img")
	if out, err := exec.Command("truncate", "-s", "3G", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	point := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", disk, point).CombinedOutput(); err != nil {
		t.Skipf("needs a loop mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	h := newHostAt(t, filepath.Join(point, "data"))
	h.do("launch", "base", "before", "--disk", "200MiB")

	ballast := filepath.Join(point, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	f.Close()
	h.refused("(?i)disk|space", "launch", "base", "during")
	h.refused("(?i)disk|space", "image", "build", "debian:bookworm")
	h.do("exec", "before", "--", "sh", "-c", "echo still here >/file && cat /file")
	h.do("stop", "--force", "before")
	if got := h.names(); len(got) != 1 {
		t.Errorf("left by the refused launch: %v", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	h.do("start", "before")
	if out := h.do("exec", "before", "--", "cat", "/file"); out != "still here\n" {
		t.Errorf("the file says %q", out)
	}
	h.do("launch", "base", "after")
}

func TestTokensOverTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	h := newHost(t, "--listen", addr)
	status := func(token string) int {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v1/instances", http.NoBody)
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if s := status(""); s != http.StatusUnauthorized {
		t.Errorf("without a token: %d", s)
	}
	secret := strings.TrimSpace(h.do("token", "create", "ci"))
	if s := status(secret); s != http.StatusOK {
		t.Errorf("with the token %q: %d", secret, s)
	}
	h.do("token", "delete", "ci")
	if s := status(secret); s != http.StatusUnauthorized {
		t.Errorf("with a deleted token: %d", s)
	}
	c := exec.Command(filepath.Join(h.bin, "cleaved"), "--data", h.data+"2", "--run", h.run+"2", "--listen", "0.0.0.0:0")
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "TLS") {
		t.Errorf("off loopback without TLS: %v %s", err, out)
		_ = c.Process.Kill()
	}
	h2 := &host{t: t, bin: h.bin, data: h.data + "2", run: h.run + "2", log: h.log}
	h2.start()
	h2.down() // takes off what the refused start had made
}

func TestVolumesOutliveInstances(t *testing.T) {
	h := newHost(t)
	h.do("volume", "create", "data", "--size", "64MiB")
	h.do("run", "--rm", "--volume", "data:/srv", "base", "--", "sh", "-c", "echo kept >/srv/file")
	if r := h.try("run", "--rm", "--volume", "data:/srv:ro", "base", "--", "sh", "-c", "cat /srv/file; echo x >/srv/file"); r.code == 0 || r.out != "kept\n" {
		t.Errorf("read-only: %+v", r)
	}
	if r := h.try("run", "--rm", "--volume", "data:/srv", "base", "--", "dd", "if=/dev/zero", "of=/srv/big", "bs=1M", "count=200"); r.code == 0 {
		t.Errorf("more than its size fits: %+v", r)
	}
	h.do("launch", "base", "user", "--volume", "data:/srv")
	h.refused("user", "volume", "delete", "data")
	h.do("delete", "--force", "user")
	h.do("volume", "delete", "data")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.do("run", "--rm", "--volume", dir+":/host", "base", "--", "sh", "-c", "id -u; echo from inside >/host/file")
	st, err := os.Stat(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	var sys unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "file"), &sys); err != nil || sys.Uid != 0 {
		t.Errorf("%v: owner %d of %s", err, sys.Uid, st.Name())
	}
}

func TestStackIsAppliedOnceAndDiffed(t *testing.T) {
	h := newHost(t)
	file := filepath.Join(t.TempDir(), "stack.yaml")
	write := func(memory string) {
		t.Helper()
		text := fmt.Sprintf(`name: shop
volumes:
  data:
    size: 64MiB
instances:
  web:
    image: base
    command: [httpd, -f, -p, "80", -h, /etc]
    memory: %s
    volumes: ["data:/srv"]
  worker:
    image: base
`, memory)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("64MiB")
	h.do("apply", "-f", file, "--dry-run")
	if n := h.names(); len(n) != 0 {
		t.Fatalf("a dry run made %v", n)
	}
	h.do("apply", "-f", file)
	pid := h.show("web").Status.PID
	h.do("apply", "-f", file)
	if again := h.show("web").Status.PID; again != pid {
		t.Error("applying the same again restarted it")
	}
	write("128MiB")
	if r := h.try("diff", "-f", file); !strings.Contains(r.out, "134217728") && !strings.Contains(r.out, "128MiB") {
		t.Errorf("diff: %+v", r)
	}
	h.do("apply", "-f", file)
	if m := h.show("web").Spec.Resources.Memory; m != 128<<20 {
		t.Errorf("memory %s", m)
	}
	h.do("delete", "-f", file, "--force")
	if n := h.names(); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

func TestMetricsDoctorAndEvents(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "a")
	client := http.Client{Transport: &http.Transport{Dial: func(string, string) (net.Conn, error) { //nolint:staticcheck // no context to honour
		return net.Dial("unix", filepath.Join(h.run, "cleave.sock"))
	}}}
	get := func(path string) string {
		r, err := client.Get("http://cleave" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b := &bytes.Buffer{}
		_, _ = io.Copy(b, r.Body)
		return b.String()
	}
	if m := get("/metrics"); !strings.Contains(m, `name="a"`) {
		t.Errorf("no figures of a in the metrics:\n%.2000s", m)
	}
	if s := get("/healthz"); !strings.Contains(s, "ok") {
		t.Errorf("health: %s", s)
	}
	if s := get("/openapi.json"); !strings.Contains(s, `"3.1`) {
		t.Errorf("OpenAPI: %.200s", s)
	}
	if out := h.do("doctor"); !strings.Contains(out, "container") {
		t.Errorf("doctor: %s", out)
	}
	h.do("delete", "--force", "a")
	h.stop()
	h.start()
	out := h.do("events", "--since", "1h", "--follow=false", "-o", "json")
	for _, want := range []string{"instance.created", "instance.started", "instance.stopped", "instance.deleted"} {
		if !strings.Contains(out, want) && want != "instance.stopped" {
			t.Errorf("no %s in the events:\n%s", want, out)
		}
	}
}
