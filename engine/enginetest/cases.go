package enginetest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

func (s *suite) entryPointRuns(t *testing.T) {
	spec := s.spec(t, `echo out; echo err >&2; echo "$A $B"`)
	spec.Proc.Env = append(spec.Proc.Env, "A=1", "B=two words")
	out, st := s.run(t, spec)
	if st.Code != 0 || !strings.Contains(out, "out\n") || !strings.Contains(out, "err\n") || !strings.Contains(out, "1 two words\n") {
		t.Errorf("status %+v, output %q", st, out)
	}
}

func (s *suite) exitStatus(t *testing.T) {
	type variant struct {
		script string
		want   int
	}
	for _, v := range some(s, variant{"exit 7", 7}, variant{"exit 0", 0}, variant{"kill -TERM $$", 143}) {
		if out, st := s.run(t, s.spec(t, v.script)); st.Code != v.want {
			t.Errorf("%s: status %+v, want %d, output %q", v.script, st, v.want, out)
		}
	}
}

func (s *suite) refused(t *testing.T, spec *engine.Spec, code api.Code, text string) {
	t.Helper()
	_, err := s.Engine.Start(t.Context(), spec)
	wants(t, err, code, text)
	gs, err := s.Engine.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gs {
		if g.ID == spec.ID {
			t.Errorf("a failed start leaves %+v", g)
		}
	}
	s.forget(t, spec.ID)
}

func (s *suite) missingProgram(t *testing.T) {
	for _, name := range some(s, "nothing-here", "/bin/nothing-here") {
		spec := s.spec(t, "")
		spec.Proc.Args = []string{name}
		s.refused(t, spec, api.CodeNotFound, name)
	}
}

func (s *suite) unrunnableProgram(t *testing.T) {
	for _, file := range some(s, "/etc/passwd", "/etc") {
		spec := s.spec(t, "")
		spec.Proc.Args = []string{file}
		s.refused(t, spec, api.CodeInvalid, file)
	}
}

func (s *suite) overHost(t *testing.T) {
	spec := s.spec(t, "true")
	spec.Resources.CPUs = 100000
	s.refused(t, spec, api.CodeNoResources, "CPUs")
	spec = s.spec(t, "true")
	spec.Resources.Memory = 1 << 50
	s.refused(t, spec, api.CodeNoResources, "memory")
	spec = s.spec(t, "true")
	spec.Resources.CPUSet = "4000"
	s.refused(t, spec, api.CodeNoResources, "4000")
}

func (s *suite) userAndWorkDir(t *testing.T) {
	spec := s.spec(t, `id -u; pwd; touch /etc/x 2>&1 || echo refused`)
	spec.Proc.User, spec.Proc.WorkDir = "user", "/tmp"
	out, _ := s.run(t, spec)
	if !strings.HasPrefix(out, "1000\n/tmp\n") || !strings.HasSuffix(out, "refused\n") {
		t.Errorf("output %q", out)
	}
	spec = s.spec(t, "true")
	spec.Proc.User = "nobody-knows"
	s.refused(t, spec, api.CodeNotFound, "nobody-knows")
}

func (s *suite) stdin(t *testing.T) {
	spec := s.spec(t, `read line; echo "got $line"`)
	spec.Proc.Stdin = true
	s.start(t, spec)
	c, err := s.Engine.Console(t.Context(), spec.ID, engine.ConsoleOptions{Stdin: true, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c.Stdin(), "hello\n"); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c.Stdout())
	if err != nil || string(out) != "got hello\n" {
		t.Errorf("output %q, error %v", out, err)
	}
	if st, err := c.Exit(t.Context()); err != nil || st.Code != 0 {
		t.Errorf("exit %+v, error %v", st, err)
	}
}

func (s *suite) terminal(t *testing.T) {
	spec := s.spec(t, `tty; test -t 0 && test -c /dev/console && echo yes; echo x > /dev/tty; stty size`)
	spec.Proc.TTY = true
	out, st := s.run(t, spec)
	if st.Code != 0 || !strings.Contains(out, "yes\r\n") || !strings.Contains(out, "x\r\n") || strings.Contains(out, "not a tty") {
		t.Errorf("status %+v, output %q", st, out)
	}
}

func (s *suite) rootPersists(t *testing.T) {
	spec := s.spec(t, `echo kept > /root/f; rm /etc/passwd; mv /var /var2; ls -ln /root/f`)
	if out, st := s.run(t, spec); st.Code != 0 || !strings.Contains(out, " 0        0 ") {
		t.Fatalf("status %+v, output %q", st, out)
	}
	s.forget(t, spec.ID)
	again := s.spec(t, `cat /root/f; ls /etc/passwd 2>&1; ls -d /var2`)
	again.Root = spec.Root
	out, _ := s.run(t, again)
	if !strings.Contains(out, "kept\n") || !strings.Contains(out, "No such file") || !strings.Contains(out, "/var2\n") {
		t.Errorf("output %q", out)
	}
}

func (s *suite) readOnlyRoot(t *testing.T) {
	spec := s.spec(t, `touch /x 2>&1; mount -o remount,rw / 2>&1; touch /x 2>&1`)
	spec.Root.ReadOnly = true
	out, st := s.run(t, spec)
	if s.Machine != nil {
		// Its root is master of its own kernel's mounts: what is read-only
		// there keeps programs from mistakes.
		if !strings.HasPrefix(out, "touch: /x: Read-only") {
			t.Errorf("status %+v, output %q", st, out)
		}
		return
	}
	if st.Code == 0 || strings.Count(out, "Read-only") != 2 {
		t.Errorf("status %+v, output %q", st, out)
	}
}

func (s *suite) volumes(t *testing.T) {
	if !s.caps.HostPath {
		t.Skipf("engine %s has no host paths", s.Engine.Name())
	}
	vol, ro, file := s.Volume(t), s.Volume(t), filepath.Join(s.Volume(t), "conf")
	for name, content := range map[string]string{filepath.Join(ro, "f"): "ro", file: "file"} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	spec := s.spec(t, `cat /new/dir/f /etc/conf; touch /data/mine; ls -ln /data/mine; touch /new/dir/x 2>&1`)
	spec.Mounts = []engine.Mount{
		{Source: vol, Target: "/data", Owned: true},
		{Source: ro, Target: "/new/dir", ReadOnly: true},
		{Source: file, Target: "/etc/conf"},
	}
	out, st := s.run(t, spec)
	if !strings.HasPrefix(out, "rofile") || !strings.Contains(out, " 0        0 ") || !strings.Contains(out, "Read-only") || st.Code == 0 {
		t.Errorf("status %+v, output %q", st, out)
	}
	if _, err := os.Stat(filepath.Join(vol, "mine")); err != nil {
		t.Error(err)
	}
	for _, target := range []string{"/proc/sys", "/", "/dev/sda", "relative"} {
		spec := s.spec(t, "true")
		spec.Mounts = []engine.Mount{{Source: vol, Target: target}}
		s.refused(t, spec, api.CodeInvalid, target)
	}
	spec = s.spec(t, "true")
	spec.Mounts = []engine.Mount{{Source: filepath.Join(vol, "missing"), Target: "/data"}}
	s.refused(t, spec, api.CodeNotFound, "missing")
}

func (s *suite) hostFiles(t *testing.T) {
	spec := s.spec(t, `hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; df -k /dev/shm | tail -1`)
	spec.Hosts, spec.Resolv, spec.ShmSize = "10.0.0.1 box\n", "nameserver 10.0.0.2\n", 8*api.MiB
	out, _ := s.run(t, spec)
	if !strings.HasPrefix(out, "box\nbox\n10.0.0.1 box\nnameserver 10.0.0.2\n") || !strings.Contains(out, " 8192 ") {
		t.Errorf("output %q", out)
	}
}

func (s *suite) sysctlsAndUlimits(t *testing.T) {
	spec := s.spec(t, `cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_unprivileged_port_start; ulimit -n; ulimit -Hn`)
	spec.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096"}
	spec.Ulimits = map[string]api.Ulimit{"nofile": {Soft: 77, Hard: 88}}
	if out, _ := s.run(t, spec); out != "1\n4096\n0\n77\n88\n" {
		t.Errorf("output %q", out)
	}
	for _, name := range some(s, "kernel.hostname", "vm.overcommit_memory", "net/../vm/swappiness", "net.ipv4.no_such") {
		spec := s.spec(t, "true")
		spec.Sysctls = map[string]string{name: "1"}
		s.refused(t, spec, api.CodeInvalid, "sysctl")
	}
}

func (s *suite) signal(t *testing.T) {
	spec := s.spec(t, `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done`)
	s.start(t, spec)
	s.waitLog(t, spec.ID, "ready")
	if err := s.Engine.Signal(t.Context(), spec.ID, "SIGTERM"); err != nil {
		t.Fatal(err)
	}
	if st := s.exits.of(t, spec.ID).Status; st.Code != 3 {
		t.Errorf("status %+v", st)
	}
	wants(t, s.Engine.Signal(t.Context(), spec.ID, "SIGNONSENSE"), api.CodeInvalid, "SIGNONSENSE")
}

// waitLog waits until a guest has written something.
func (s *suite) waitLog(t *testing.T, id, text string) {
	t.Helper()
	c, err := s.Engine.Console(t.Context(), id, engine.ConsoleOptions{Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	timer := time.AfterFunc(hang, func() { c.Close() })
	defer timer.Stop()
	var got strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(got.String(), text) {
		n, err := c.Stdout().Read(buf)
		got.Write(buf[:n])
		if err != nil {
			t.Fatalf("wait for %q: %v after %q", text, err, got.String())
		}
	}
}

func (s *suite) kill(t *testing.T) {
	spec := s.spec(t, `trap '' TERM INT; (setsid sleep 1000 &) ; echo ready; while :; do sleep 1; done`)
	s.start(t, spec)
	s.waitLog(t, spec.ID, "ready")
	if err := s.Engine.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	if st := s.exits.of(t, spec.ID).Status; st.Code != 137 || st.OOMKilled {
		t.Errorf("status %+v", st)
	}
}

func (s *suite) pause(t *testing.T) {
	if !s.caps.Pause {
		t.Skipf("engine %s can't pause", s.Engine.Name())
	}
	spec := s.spec(t, `while :; do :; done`)
	s.start(t, spec)
	if err := s.Engine.Pause(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	cpu := func() uint64 {
		st, err := s.Engine.Stats(t.Context(), spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		return st.CPUNanos
	}
	// It would use all of a processor if it ran; what holds it may do something.
	const look = 500 * time.Millisecond
	before := cpu()
	time.Sleep(look)
	if used := time.Duration(cpu() - before); used > look/5 {
		t.Errorf("a paused guest used %v in %v", used, look)
	}
	if err := s.Engine.Resume(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(hang); cpu() <= before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("a resumed guest doesn't run")
		}
	}
	if s.Machine != nil {
		s.clockAfterPause(t, spec.ID)
	}
	// A paused guest can be killed.
	if err := s.Engine.Pause(t.Context(), spec.ID); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) agentExec(t *testing.T) {
	spec := s.spec(t, `echo up > /tmp/up; exec sleep 1000`)
	s.start(t, spec)
	if out, code := s.exec(t, spec.ID, "sh", "-c", "cat /proc/1/comm; hostname; exit 5"); code != 5 || !strings.Contains(out, "box") {
		t.Errorf("exit %d, output %q", code, out)
	}
}

func (s *suite) memoryLimit(t *testing.T) {
	spec := s.spec(t, `tail /dev/zero`)
	spec.Resources.Memory = 32 * api.MiB
	if s.Machine != nil {
		spec.Resources.Memory = spec.Machine.Memory
	}
	_, st := s.run(t, spec)
	if st.Code != 137 || !st.OOMKilled {
		t.Errorf("status %+v", st)
	}
}

func (s *suite) processLimit(t *testing.T) {
	spec := s.spec(t, `bomb() { bomb | bomb & }; echo ready; bomb; sleep 1000`)
	spec.Resources.PIDs = 60
	if s.Machine == nil {
		spec.Resources.Memory = 256 * api.MiB
	}
	s.start(t, spec)
	s.waitLog(t, spec.ID, "ready")
	for range 20 {
		st, err := s.Engine.Stats(t.Context(), spec.ID)
		if err != nil {
			t.Fatal(err)
		}
		// In a machine our own PID 1 counts beside those that are bounded.
		if most := int64(60); st.PIDs > most && (s.Machine == nil || st.PIDs > most+16) {
			t.Fatalf("%d processes", st.PIDs)
		}
		time.Sleep(10 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	if err := s.Engine.Clean(ctx, spec.ID); err != nil {
		t.Errorf("clean of a fork bomb: %v", err)
	}
}

func (s *suite) update(t *testing.T) {
	if !s.caps.Resize {
		t.Skipf("engine %s can't resize", s.Engine.Name())
	}
	spec := s.spec(t, `sleep 1000`)
	s.start(t, spec)
	less := 64 * api.MiB
	if s.Machine != nil {
		less = spec.Machine.Memory * 3 / 4
	}
	r := api.Resources{
		CPUs: 0.5, CPUWeight: 200, CPUSet: "0", Memory: less, MemorySoft: less / 2, PIDs: 100,
		DiskRead: 10 * api.MiB, DiskReadIO: 1000,
	}
	writes := r
	writes.DiskWrite, writes.DiskWriteO = 10*api.MiB, 1000
	if s.caps.WriteLimits {
		r = writes
	} else {
		wants(t, s.Engine.Update(t.Context(), spec.ID, writes, spec.Root.Dir), api.CodeUnsupported, "writes")
	}
	if err := s.Engine.Update(t.Context(), spec.ID, r, spec.Root.Dir); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Engine.Stats(t.Context(), spec.ID); err != nil || st.MemoryLimit != less {
		t.Errorf("limit %v, error %v", st.MemoryLimit, err)
	}
	if out, _ := s.exec(t, spec.ID, "grep", "Cpus_allowed_list", "/proc/self/status"); !strings.HasSuffix(out, "\t0\n") {
		t.Errorf("CPUs %q", out)
	}
	over := r
	over.Memory = 1 << 50
	wants(t, s.Engine.Update(t.Context(), spec.ID, over, spec.Root.Dir), api.CodeNoResources, "memory")
	// What can't be pushed out of memory makes the whole change fail.
	over = r
	over.PIDs, over.Memory = 5, 0
	if err := s.Engine.Update(t.Context(), spec.ID, over, spec.Root.Dir); err != nil {
		t.Error(err)
	}
	if st, err := s.Engine.Stats(t.Context(), spec.ID); err != nil || st.MemoryLimit != 0 {
		t.Errorf("limit %v after it was lifted, error %v", st.MemoryLimit, err)
	}
}

func (s *suite) stats(t *testing.T) {
	spec := s.spec(t, `i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/root/f bs=64k count=64 2>/dev/null; sync; echo ready; exec sleep 1000`)
	s.start(t, spec)
	s.waitLog(t, spec.ID, "ready")
	st, err := s.Engine.Stats(t.Context(), spec.ID)
	if err != nil {
		t.Fatal(err)
	}
	if st.CPUNanos == 0 || st.Memory == 0 || st.PIDs == 0 {
		t.Errorf("stats %+v", st)
	}
	wants(t, func() error { _, err := s.Engine.Stats(t.Context(), "nobody"); return err }(), api.CodeConflict, "nobody")
}

func (s *suite) reopen(t *testing.T) {
	spec := s.spec(t, `echo ready; read x < /dev/zero; exec sleep 1000`)
	g := s.start(t, spec)
	s.Engine = s.Reopen(t)
	s.exits = watch(s.Engine)
	gs, err := s.Engine.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range gs {
		found = found || l.ID == spec.ID && l.Running && l.PID == g.PID
	}
	if !found {
		t.Fatalf("guest %d is not in %+v", g.PID, gs)
	}
	if out, code := s.exec(t, spec.ID, "echo", "still here"); code != 0 || out != "still here\n" {
		t.Errorf("exit %d, output %q", code, out)
	}
	if err := s.Engine.Signal(t.Context(), spec.ID, "SIGKILL"); err != nil {
		t.Fatal(err)
	}
	s.exits.of(t, spec.ID)
}

func (s *suite) cleanTwice(t *testing.T) {
	spec := s.spec(t, `sleep 1000`)
	s.start(t, spec)
	for range 2 {
		if err := s.Engine.Clean(t.Context(), spec.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Engine.Agent(t.Context(), spec.ID); err == nil {
		t.Error("a cleaned guest has an agent")
	}
}

func (s *suite) strangers(t *testing.T) {
	a := s.spec(t, `echo ready; exec sleep 12345`)
	s.start(t, a)
	s.waitLog(t, a.ID, "ready")
	b := s.spec(t, `ps | grep '[s]leep 12345'; ls /proc | grep -c '^[0-9]'; cat /proc/1/cmdline`)
	out, _ := s.run(t, b)
	if strings.Contains(out, "12345") {
		t.Errorf("output %q", out)
	}
}
