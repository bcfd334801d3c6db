package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestBadInputIsRefusedWithAWayOut(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "taken")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for _, c := range []struct {
		want string
		args []string
	}{
		{`not found`, []string{"show", "nosuch"}},
		{`taken" already exists`, []string{"launch", "base", "taken"}},
		{`not a valid name`, []string{"launch", "base", "Not_Valid"}},
		{`localhost:1`, []string{"launch", "localhost:1/no/such:image", "a"}},
		{`/nosuch`, []string{"launch", "base", "a", "--", "/nosuch"}},
		{`/etc/passwd`, []string{"launch", "base", "a", "--", "/etc/passwd"}},
		{`nobodyknows`, []string{"launch", "base", "a", "--user", "nobodyknows"}},
		{`this host has`, []string{"launch", "base", "a", "--memory", "900TiB"}},
		{`this host has`, []string{"launch", "base", "a", "--cpus", "5000"}},
		{`too little`, []string{"launch", "base", "a", "--memory", "1MiB"}},
		{`not a size`, []string{"launch", "base", "a", "--memory", "lots"}},
		{fmt.Sprint(port), []string{"launch", "base", "a", "--publish", fmt.Sprintf("127.0.0.1:%d:80", port)}},
		{`no engine|vm`, []string{"launch", "base", "a", "--kind", "vm"}},
		{`network "nosuch" not found`, []string{"launch", "base", "a", "--network", "nosuch"}},
		{`volume "nosuch" not found`, []string{"launch", "base", "a", "--volume", "nosuch:/data"}},
		{`pool "nosuch" not found`, []string{"launch", "base", "a", "--pool", "nosuch"}},
		{`kernel\.panic`, []string{"launch", "base", "a", "--sysctl", "kernel.panic=1"}},
		{`127\.0\.0\.|clash|in use|conflict`, []string{"network", "create", "bad", "--ipv4", "127.0.0.0/8"}},
	} {
		h.refused(c.want, c.args...)
	}
	if got := h.names(); len(got) != 1 || got[0] != "taken" {
		t.Errorf("something half done is left: %v", got)
	}
	if r := h.try("launch"); r.code != 2 {
		t.Errorf("usage: %+v", r)
	}
}

func TestHostileGuestsAreHeld(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "witness", "--", "sleep", "1000")
	run := func(name string, flags []string, script string) result {
		t.Helper()
		args := append([]string{"run", "--rm", "--name", name}, flags...)
		return h.try(append(args, "base", "--", "sh", "-c", script)...)
	}
	t.Run("fork bomb", func(t *testing.T) {
		h.do("launch", "base", "bomb", "--pids", "64", "--", "sh", "-c", "f() { f | f & }; while :; do f 2>/dev/null; sleep 0.1; done")
		time.Sleep(time.Second)
		h.do("exec", "witness", "--", "true")
		h.do("delete", "--force", "bomb")
	})
	t.Run("memory", func(t *testing.T) {
		r := run("hog", []string{"--memory", "32MiB"}, "tail -c 200m /dev/zero | tail -c 200m | wc -c; head -c 300m /dev/zero | tail -c 250m >/dev/null")
		if r.code == 0 {
			t.Errorf("it got more than its memory: %+v", r)
		}
	})
	t.Run("disk", func(t *testing.T) {
		r := run("filler", []string{"--disk", "64MiB"}, "dd if=/dev/zero of=/fill bs=1M count=200")
		if r.code == 0 || !strings.Contains(strings.ToLower(r.out+r.err), "space") && !strings.Contains(strings.ToLower(r.out+r.err), "quota") {
			t.Errorf("%+v", r)
		}
		h.do("exec", "witness", "--", "sh", "-c", "echo x >/works")
	})
	t.Run("log flood", func(t *testing.T) {
		h.do("launch", "base", "flood", "--", "sh", "-c", "yes flood")
		time.Sleep(2 * time.Second)
		h.do("delete", "--force", "flood")
		var size int64
		_ = filepath.Walk(filepath.Join(h.data, "logs"), func(_ string, fi os.FileInfo, _ error) error {
			if fi != nil {
				size += fi.Size()
			}
			return nil
		})
		if size > 64<<20 {
			t.Errorf("logs hold %d bytes", size)
		}
	})
	t.Run("ignores its stop signal", func(t *testing.T) {
		h.do("launch", "base", "deaf", "--stop-timeout", "1", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
		h.do("stop", "deaf")
		if s := h.show("deaf").Status; s.Exit == nil || s.Exit.Code != 137 {
			t.Errorf("%+v", s.Exit)
		}
	})
	t.Run("reaches neither host nor its files", func(t *testing.T) {
		for name, script := range map[string]string{
			"sysrq":         "echo b >/proc/sysrq-trigger",
			"core pattern":  "echo x >/proc/sys/kernel/core_pattern",
			"kernel memory": "head -c 1 /proc/kcore | grep -q .",
			"block device":  "mknod /tmp/d b 8 0",
			"kernel log":    "dmesg | grep -q .",
			"module":        "insmod /bin/sh",
			"clock":         "date -s 2001-01-01; [ $(date +%Y) = 2001 ]",
			"reboot":        "reboot -f",
			"host ssh":      "nc -w 2 $(ip route | awk '/default/{print $3}') 2024 </dev/null",
			"mount":         "mount -t tmpfs none /mnt",
			"bigger cgroup": "echo -1 >/sys/fs/cgroup/memory/memory.limit_in_bytes || echo max >/sys/fs/cgroup/memory.max",
		} {
			if r := run("x", nil, script); r.code == 0 {
				t.Errorf("%s: it worked: %+v", name, r)
			}
		}
	})
	h.do("delete", "--force", "witness")
}

// TestKilledInAnyStep kills the daemon under a load of launches and deletes.
// Every launch that was acknowledged must be there afterwards, every delete
// that was acknowledged must be gone, and nothing else may be left.
func TestKilledInAnyStep(t *testing.T) {
	h := newHost(t)
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	var mu sync.Mutex
	have := map[string]bool{} // acknowledged
	open := map[string]bool{} // unknown: the command failed because the daemon died
	for round := range rounds {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for w := range 4 {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					name := fmt.Sprintf("g%d-%d-%d", round, w, i)
					mu.Lock()
					open[name] = true
					mu.Unlock()
					if h.try("launch", "base", name).code != 0 {
						return
					}
					mu.Lock()
					delete(open, name)
					have[name] = true
					mu.Unlock()
					if i%2 == 0 {
						continue
					}
					mu.Lock()
					delete(have, name)
					open[name] = true
					mu.Unlock()
					if h.try("delete", "--force", name).code != 0 {
						return
					}
					mu.Lock()
					delete(open, name)
					mu.Unlock()
				}
			})
		}
		time.Sleep(time.Duration(300+rand.IntN(700)) * time.Millisecond)
		h.kill()
		close(stop)
		wg.Wait()
		h.start()
		settled := func() bool {
			return !strings.Contains(h.do("list"), "creating") && !strings.Contains(h.do("list"), "deleting")
		}
		eventually(t, "work that was cut short is finished", settled)
		there := map[string]bool{}
		for _, n := range h.names() {
			there[n] = true
			if !have[n] && !open[n] {
				t.Errorf("round %d: %s is there though its deletion was acknowledged", round, n)
			}
		}
		for n := range have {
			if !there[n] {
				t.Errorf("round %d: %s is gone though its launch was acknowledged", round, n)
				continue
			}
			if p := h.show(n).Status.Phase; p != "running" {
				t.Errorf("round %d: %s is %s", round, n, p)
			}
		}
		for n := range there {
			h.do("delete", "--force", n)
		}
		clear(have)
		clear(open)
	}
	if left, _ := filepath.Glob(filepath.Join(h.run, "instances", "*")); len(left) > 0 {
		t.Errorf("runtime directories are left: %v", left)
	}
}

func TestLimitsChangeWhileTheGuestRuns(t *testing.T) {
	h := newHost(t)
	h.do("launch", "base", "a", "--", "sleep", "1000")
	pid := h.show("a").Status.PID
	h.do("set", "a", "memory=64MiB", "cpus=0.5", "pids=100", "label.tier=web")
	in := h.show("a")
	if in.Status.PID != pid || in.Spec.Resources.Memory != 64<<20 || in.Spec.Resources.CPUs != 0.5 || in.Labels["tier"] != "web" {
		t.Errorf("%+v %+v", in.Spec.Resources, in.Labels)
	}
	r := h.try("exec", "a", "--", "sh", "-c", "head -c 200m /dev/zero | tail -c 150m >/dev/null")
	if r.code == 0 {
		t.Error("the new memory limit doesn't hold")
	}
	h.refused("memmory", "set", "a", "memmory=1GiB")
	h.refused("this host has", "set", "a", "memory=900TiB")
	if got := h.show("a").Spec.Resources.Memory; got != 64<<20 {
		t.Errorf("a refused change changed memory to %s", got)
	}
}
