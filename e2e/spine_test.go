package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFirstSteps(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "web", "--publish", "18080:80", "--", "httpd", "-f", "-p", "80", "-h", "/etc")
	in := h.show("web")
	if in.Status.Phase != "running" || in.Status.PID == 0 {
		t.Fatalf("%+v", in.Status)
	}

	t.Run("published port", func(t *testing.T) {
		var body string
		eventually(t, "the port answers", func() bool {
			r, err := http.Get("http://127.0.0.1:18080/hostname")
			if err != nil {
				return false
			}
			defer r.Body.Close()
			b := &bytes.Buffer{}
			_, _ = b.ReadFrom(r.Body)
			body = b.String()
			return true
		})
		if strings.TrimSpace(body) != "web" {
			t.Errorf("it says %q", body)
		}
	})
	t.Run("by name from another guest", func(t *testing.T) {
		r := h.try("run", "--rm", "base", "--", "wget", "-qO-", "http://web/hostname")
		if r.code != 0 || strings.TrimSpace(r.out) != "web" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("exit status", func(t *testing.T) {
		for _, want := range []int{0, 7, 255} {
			if r := h.try("run", "--rm", "base", "--", "sh", "-c", fmt.Sprintf("exit %d", want)); r.code != want {
				t.Errorf("run: %+v, want %d", r, want)
			}
			if r := h.try("exec", "web", "--", "sh", "-c", fmt.Sprintf("exit %d", want)); r.code != want {
				t.Errorf("exec: %+v, want %d", r, want)
			}
		}
		if r := h.try("run", "--rm", "base", "--", "sh", "-c", "kill -9 $$"); r.code != 137 {
			t.Errorf("killed: %+v", r)
		}
	})
	t.Run("pipes and binary data", func(t *testing.T) {
		data := make([]byte, 5<<20)
		_, _ = rand.Read(data)
		r := h.tryIn(bytes.NewReader(data), "exec", "-i", "web", "--", "cat")
		if r.code != 0 || r.out != string(data) {
			t.Errorf("status %d, %d bytes, equal %v %s", r.code, len(r.out), r.out == string(data), r.err)
		}
		r = h.tryIn(bytes.NewReader(data), "run", "--rm", "-i", "base", "--", "sha256sum")
		if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(r.out, want) {
			t.Errorf("run -i: %+v, want %s", r, want)
		}
	})
	t.Run("copy 100 MB both ways", func(t *testing.T) {
		dir := t.TempDir()
		data := make([]byte, 100<<20)
		_, _ = rand.Read(data)
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		if err := os.WriteFile(src, data, 0o640); err != nil {
			t.Fatal(err)
		}
		h.do("cp", src, "web:/root/big")
		sum := h.do("exec", "web", "--", "sha256sum", "/root/big")
		if want := fmt.Sprintf("%x", sha256.Sum256(data)); !strings.HasPrefix(sum, want) {
			t.Errorf("inside: %s, want %s", sum, want)
		}
		h.do("cp", "web:/root/big", dst)
		back, err := os.ReadFile(dst)
		if err != nil || !bytes.Equal(back, data) {
			t.Errorf("came back different: %v", err)
		}
	})
	t.Run("logs", func(t *testing.T) {
		h.do("launch", "base", "talker", "--", "sh", "-c", "echo one; echo two >&2; sleep 1000")
		eventually(t, "both lines are there", func() bool {
			r := h.try("logs", "talker")
			return strings.Contains(r.out+r.err, "one") && strings.Contains(r.out+r.err, "two")
		})
		h.do("delete", "--force", "talker")
	})
	t.Run("power", func(t *testing.T) {
		h.do("pause", "web")
		if p := h.show("web").Status.Phase; p != "paused" {
			t.Error(p)
		}
		h.refused("paused", "exec", "web", "--", "true")
		h.do("resume", "web")
		h.do("exec", "web", "--", "true")
		before := h.show("web")
		h.do("restart", "web")
		after := h.show("web")
		if after.Status.PID == before.Status.PID || after.Status.NICs[0].IPv4 != before.Status.NICs[0].IPv4 {
			t.Errorf("before %+v after %+v", before.Status, after.Status)
		}
		h.do("stop", "web")
		h.refused("stopped", "exec", "web", "--", "true")
		h.do("start", "web")
		h.do("rename", "web", "site")
		r := h.try("run", "--rm", "base", "--", "wget", "-qO-", "http://site/hostname")
		if r.code != 0 {
			t.Errorf("by its new name: %+v", r)
		}
	})
	h.refused("running", "delete", "site")
	h.do("delete", "--force", "site")
	if n := h.names(); len(n) != 0 {
		t.Errorf("left: %v", n)
	}
}

func TestDaemonMayDieAtAnyTime(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "a", "--", "sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done")
	h.do("launch", "base", "b", "--", "sh", "-c", "sleep 3; exit 9")
	before := h.show("a")
	heard := strings.Count(h.do("logs", "a"), "\n")
	h.kill()
	time.Sleep(4 * time.Second) // b ends while no daemon runs
	h.start()
	after := h.show("a")
	if after.Status.PID != before.Status.PID || after.Status.Phase != "running" {
		t.Errorf("a is not the guest of before: %+v, then %+v", before.Status, after.Status)
	}
	eventually(t, "b's exit status is known", func() bool {
		s := h.show("b").Status
		return s.Phase == "stopped" && s.Exit != nil && s.Exit.Code == 9
	})
	h.do("stop", "a", "--force")
	var next int
	for line := range strings.Lines(h.do("logs", "a")) {
		var n int
		if _, err := fmt.Sscanf(line, "line %d", &n); err != nil || n != next+1 {
			t.Fatalf("after line %d comes %q", next, line)
		}
		next = n
	}
	if next < heard+10 {
		t.Errorf("%d lines before the daemon died, %d in the end", heard, next)
	}
}

func TestKeeperMayDie(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "a", "--", "sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done")
	before := h.show("a")
	pid := keeperPID(t, h)
	if err := kill9(pid); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another keeper runs", func() bool { p, err := findKeeper(h); return err == nil && p != pid })
	eventually(t, "exec works", func() bool { return h.try("exec", "a", "--", "true").code == 0 })
	after := h.show("a")
	if after.Status.PID != before.Status.PID || after.Status.Phase != "running" {
		t.Errorf("a is not the guest of before: %+v, then %+v", before.Status, after.Status)
	}
	n := strings.Count(h.do("logs", "a"), "\n")
	eventually(t, "output goes on being logged", func() bool { return strings.Count(h.do("logs", "a"), "\n") > n+5 })
	h.do("stop", "a", "--force")
	if s := h.show("a").Status; s.Phase != "stopped" {
		t.Errorf("%+v", s)
	}
}
