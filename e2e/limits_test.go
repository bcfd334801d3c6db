package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// stats reads what a guest has used.
func (h *host) stats(name string) api.Stats {
	h.t.Helper()
	var all []api.Stats
	out := h.do("stats", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		h.t.Fatalf("stats: %v\n%s", err, out)
	}
	return all[0]
}

func TestLimitsHold(t *testing.T) {
	h := newHost(t)
	t.Run("memory", func(t *testing.T) {
		h.do("launch", "base", "hog", "--memory", "32MiB", "--", "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=60")
		eventually(t, "it has ended", func() bool { return h.show("hog").Status.Phase == "stopped" })
		if e := h.show("hog").Status.Exit; e == nil || e.Code != 137 || !e.OOMKilled {
			t.Errorf("%+v", e)
		}
		h.do("delete", "hog")
	})
	t.Run("memory of a running guest", func(t *testing.T) {
		h.do("launch", "base", "a", "--", "sleep", "1000")
		fill := []string{"exec", "a", "--", "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=40"}
		h.do(fill...)
		h.do("exec", "a", "--", "rm", "/dev/shm/x")
		h.do("set", "a", "memory=32MiB")
		if limit := h.stats("a").MemoryLimit; limit != 32*api.MiB {
			t.Errorf("its limit is %s", limit)
		}
		if r := h.try(fill...); r.code == 0 {
			t.Errorf("it wrote more: %+v", r)
		}
		h.do("delete", "--force", "a")
	})
	t.Run("processes", func(t *testing.T) {
		h.do("launch", "base", "a", "--pids", "20", "--", "sleep", "1000")
		r := h.try("exec", "a", "--", "sh", "-c", "for i in $(seq 40); do sleep 1000 & done")
		if n := h.stats("a").PIDs; r.code == 0 || n > 20 || n < 5 {
			t.Errorf("%d processes, %+v", n, r)
		}
		h.do("delete", "--force", "a")
	})
	t.Run("CPU, and pause", func(t *testing.T) {
		h.do("launch", "base", "a", "--cpus", "0.2", "--", "sh", "-c", "while :; do :; done")
		first := h.stats("a")
		eventually(t, "it gets no more than its share, and is throttled", func() bool {
			time.Sleep(2 * time.Second)
			last := h.stats("a")
			share := float64(last.CPUNanos-first.CPUNanos) / float64(last.Time.Sub(first.Time))
			t.Logf("it got %.2f of a CPU and was throttled for %d ns", share, last.ThrottledNanos)
			return share <= 0.3 && last.ThrottledNanos > 0
		})
		h.do("pause", "a")
		paused := h.stats("a").CPUNanos
		time.Sleep(500 * time.Millisecond)
		if now := h.stats("a").CPUNanos; now != paused {
			t.Errorf("paused it used %d ns", now-paused)
		}
		h.do("resume", "a")
		eventually(t, "it goes on", func() bool { return h.stats("a").CPUNanos > paused })
		if p := h.stats("a").Pressure; p != nil && p["cpu"].SomeTotal == 0 {
			t.Errorf("no stall: %+v", p)
		}
		h.do("delete", "--force", "a")
	})
	t.Run("disk rate", func(t *testing.T) {
		h.do("launch", "base", "a", "--disk-write", "1MiB/s", "--", "sleep", "1000")
		begin := time.Now()
		h.do("exec", "a", "--", "dd", "if=/dev/zero", "of=/x", "bs=256k", "count=12", "oflag=direct")
		if took := time.Since(begin); took < 2*time.Second {
			t.Errorf("3 MiB took %s", took)
		}
		h.do("set", "a", "disk.write=0")
		h.do("delete", "--force", "a")
	})
	t.Run("disk size", func(t *testing.T) {
		h.do("launch", "base", "a", "--disk", "48MiB", "--", "sleep", "1000")
		if r := h.try("exec", "a", "--", "dd", "if=/dev/zero", "of=/x", "bs=1M", "count=80", "conv=fsync"); r.code == 0 {
			t.Errorf("it wrote more: %+v", r)
		}
		h.do("exec", "a", "--", "sh", "-c", "rm /x && sync && echo again >/y")
		h.do("delete", "--force", "a")
	})
}

// onCgroupV2 skips a test where version 1 hierarchies are in use.
func onCgroupV2(t *testing.T) {
	t.Helper()
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err != nil || !bytes.Contains(b, []byte("memory")) {
		t.Skip("needs cgroup v2 with all controllers at /sys/fs/cgroup")
	}
}

func TestDoctorFindsAllOnCgroupV2(t *testing.T) {
	onCgroupV2(t)
	h := newHost(t)
	var report struct{ Items []api.Finding }
	out := h.do("doctor", "-o", "json")
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		if err := json.Unmarshal([]byte(out), &report.Items); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	n := 0
	for _, f := range report.Items {
		if f.Area != "container" {
			continue
		}
		n++
		// An older kernel may lack what is no part of the wall.
		if f.State != "ok" && f.Name != "exit statuses" || strings.Contains(f.Detail, "version 1") {
			t.Errorf("%+v", f)
		}
	}
	if n < 10 {
		t.Errorf("%d findings on containers:\n%s", n, out)
	}
}

// TestDevicesAreRefused opens devices as root of the host would who has
// nothing but a guest's cgroup around him: a guest that gets hold of a device
// node, however, can't open it.
func TestDevicesAreRefused(t *testing.T) {
	onCgroupV2(t)
	h := newHost(t)
	h.do("launch", "base", "a", "--", "sleep", "1000")
	group := h.cgroup("a")
	node := filepath.Join(t.TempDir(), "kmsg")
	try := func(script string) error {
		out, err := exec.Command("sh", "-c", fmt.Sprintf("echo $$ >%s/cgroup.procs && %s", group, script)).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}
	if err := try("echo x >/dev/null && head -c 1 /dev/urandom >/dev/null"); err != nil {
		t.Errorf("a device of guests: %v", err)
	}
	for _, script := range []string{"mknod " + node + " c 1 11", ": </dev/kmsg", ": </dev/mem", ": </dev/loop-control"} {
		if err := try(script); err == nil || !strings.Contains(err.Error(), "not permitted") {
			t.Errorf("%s: %v", script, err)
		}
	}
	if r := h.try("exec", "a", "--", "mknod", "/x", "c", "1", "11"); r.code == 0 {
		t.Errorf("in the guest: %+v", r)
	}
	h.do("delete", "--force", "a")
}

// cgroup is a guest's directory in the version 2 hierarchy.
func (h *host) cgroup(name string) string {
	h.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", h.show(name).Status.PID))
	if err != nil {
		h.t.Fatal(err)
	}
	_, path, _ := strings.Cut(string(b), "0::")
	path, _, _ = strings.Cut(path, "\n")
	return filepath.Join("/sys/fs/cgroup", path)
}

// TestSystemGuestOwnsItsCgroups runs an image with an init of its own, which
// is root of a cgroup tree below its limits.
func TestSystemGuestOwnsItsCgroups(t *testing.T) {
	onCgroupV2(t)
	h := newHost(t)
	h.tryIn(busyboxSystem(t, h), "image", "import", "--name", "system:1", "-")
	h.do("launch", "system:1", "s", "--entrypoint", "/sbin/init", "--system", "--stop-signal", "SIGUSR2", "--memory", "64MiB")
	if in := h.show("s"); !in.Status.System {
		t.Fatalf("%+v", in.Status)
	}
	var r result
	eventually(t, "its init has run its script", func() bool {
		r = h.try("exec", "s", "--", "cat", "/done")
		return r.code == 0
	})
	if r.out != "1 init\n" {
		t.Errorf("%+v", r)
	}
	r = h.try("exec", "s", "--", "sh", "-c", "set -e; cd /sys/fs/cgroup; mkdir a; echo +memory >cgroup.subtree_control || { mkdir b; for p in $(cat cgroup.procs); do echo $p >b/cgroup.procs || :; done; echo +memory >cgroup.subtree_control; }; echo 10M >a/memory.max; cat a/memory.max")
	if r.code != 0 || r.out != "10485760\n" {
		t.Errorf("a group of its own: %+v", r)
	}
	if r = h.try("exec", "s", "--", "sh", "-c", "echo max >/sys/fs/cgroup/memory.max"); r.code == 0 {
		t.Errorf("its own limit: %+v", r)
	}
	h.do("stop", "s")
	h.do("start", "s")
	h.do("delete", "--force", "s")
}

// busyboxSystem is the archive of a root whose init is busybox's.
func busyboxSystem(t *testing.T, h *host) *bytes.Buffer {
	t.Helper()
	busybox, err := os.ReadFile(filepath.Join(h.bin, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	add := func(name, body, link string, typ byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: typ, Linkname: link, Mode: 0o755, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp"} {
		add(dir, "", "", tar.TypeDir)
	}
	add("bin/busybox", string(busybox), "", tar.TypeReg)
	for _, name := range []string{"sh", "cat", "mkdir", "tr", "sleep"} {
		add("bin/"+name, "", "busybox", tar.TypeSymlink)
	}
	add("sbin/init", "", "../bin/busybox", tar.TypeSymlink)
	add("etc/inittab", "::sysinit:/etc/up\n::respawn:/bin/sleep 1000\n", "", tar.TypeReg)
	add("etc/up", "#!/bin/sh\necho $PPID $(cat /proc/1/comm) >/done\n", "", tar.TypeReg)
	add("etc/passwd", "root:x:0:0::/:/bin/sh\n", "", tar.TypeReg)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}
