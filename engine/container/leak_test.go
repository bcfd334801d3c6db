package container

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// resources are what a test could leave behind.
func resources(t testing.TB, e *Engine) map[string][]string {
	t.Helper()
	r := map[string][]string{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		// Connections to the keeper are kept for later, and the runtime's
		// own come when they are first needed.
		if err == nil && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "anon_inode:[event") {
			r["descriptor"] = append(r["descriptor"], to)
		}
	}
	ids, err := e.cgroups.List()
	if err != nil {
		t.Fatal(err)
	}
	r["cgroup"] = ids
	for _, dir := range []string{"cpu", "memory", "blkio", "pids", "cpuset", "systemd", "devices", "freezer"} {
		es, _ := os.ReadDir(filepath.Join("/sys/fs/cgroup", dir, "cleave-"+e.opts.Scope))
		for _, d := range es {
			if d.IsDir() {
				r["cgroup"] = append(r["cgroup"], filepath.Join(dir, d.Name()))
			}
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte(e.opts.Run+"/"+stageName+"/")) || bytes.Contains(line, []byte("cleave-layers")) {
			r["mount"] = append(r["mount"], string(line))
		}
	}
	dirs, err := os.ReadDir(e.opts.Run)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if d.Name() != stageName {
			r["runtime directory"] = append(r["runtime directory"], d.Name())
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && strings.HasPrefix(string(b), filepath.Dir(shared.busybox)) {
			r["loop device"] = append(r["loop device"], l)
		}
	}
	r["process"] = append(r["process"], processes(e)...)
	return r
}

// processes are those whose cgroup is below the engine's.
func processes(e *Engine) []string {
	var out []string
	ps, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, p := range ps {
		b, err := os.ReadFile(p)
		if err == nil && bytes.Contains(b, []byte("/cleave-"+e.opts.Scope+"/")) {
			out = append(out, filepath.Dir(p))
		}
	}
	return out
}

// checkLeaks fails the test if it ends with more than it begins with.
func checkLeaks(t testing.TB, e *Engine) {
	t.Helper()
	before := resources(t, e)
	t.Cleanup(func() {
		e.images.close()
		for kind, now := range resources(t, e) {
			for _, old := range before[kind] {
				if i := slices.Index(now, old); i >= 0 {
					now = slices.Delete(now, i, i+1)
				}
			}
			for _, n := range now {
				t.Errorf("%s %s is left", kind, n)
			}
		}
	})
}
