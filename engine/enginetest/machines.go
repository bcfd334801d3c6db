package enginetest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

func (s *suite) diskVolumes(t *testing.T) {
	if !s.caps.Disks {
		t.Skipf("engine %s has no volumes that are disks", s.Engine.Name())
	}
	vol := s.Volume(t)
	mount := engine.Mount{Source: vol, Target: "/new/data", Owned: true, Disk: true, Size: 32 * api.MiB}
	spec := s.spec(t, `echo kept > /new/data/f; chown 1000:1000 /new/data/f; df -k /new/data | tail -1`)
	spec.Mounts = []engine.Mount{mount}
	if out, st := s.run(t, spec); st.Code != 0 || !strings.Contains(out, "/new/data") {
		t.Fatalf("status %+v, output %q", st, out)
	}
	s.forget(t, spec.ID)
	if _, err := os.Stat(filepath.Join(vol, engine.VolumeDisk)); err != nil {
		t.Error(err)
	}
	again := s.spec(t, `cat /new/data/f; ls -ln /new/data/f; touch /new/data/x 2>&1`)
	mount.ReadOnly = true
	again.Mounts = []engine.Mount{mount}
	out, st := s.run(t, again)
	if !strings.HasPrefix(out, "kept\n") || !strings.Contains(out, " 1000     1000 ") || !strings.Contains(out, "Read-only") || st.Code == 0 {
		t.Errorf("status %+v, output %q", st, out)
	}
}

// savedMemory has a guest of two processors go on from its memory, and then
// once more, since what has gone on is saved in another way.
func (s *suite) savedMemory(t *testing.T) {
	saver, ok := s.Engine.(engine.Saver)
	if !ok || !s.caps.Save {
		t.Skipf("engine %s doesn't keep memory", s.Engine.Name())
	}
	const boot = "/proc/sys/kernel/random/boot_id"
	spec := s.spec(t, `n=0; while :; do echo count $n; n=$((n+1)); sleep 1; done`)
	spec.Machine.CPUs = 2
	spec.Mounts = []engine.Mount{{Source: s.Volume(t), Target: "/data", Owned: true, Disk: true, Size: 32 * api.MiB}}
	s.start(t, spec)
	s.waitLog(t, spec.ID, "count 1")
	if out, code := s.exec(t, spec.ID, "sh", "-c", "cp "+boot+" /dev/shm/boot && echo saved 0 > /data/f"); code != 0 {
		t.Fatalf("exit %d, output %q", code, out)
	}
	for n, script := range []string{
		"cmp " + boot + " /dev/shm/boot && cat /data/f && echo saved 1 > /data/f",
		"cmp " + boot + " /dev/shm/boot && cat /data/f && sync && nproc",
	} {
		path := filepath.Join(t.TempDir(), "memory")
		if err := saver.Save(t.Context(), spec.ID, path); err != nil {
			t.Fatal(err)
		}
		if st := s.exits.nth(t, spec.ID, n+1).Status; st != (api.ExitStatus{Reason: "poweroff"}) {
			t.Errorf("it ended as %+v", st)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatalf("saved: %v, %v", st, err)
		}
		if err := s.Engine.Clean(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
		counted := strings.Count(s.log(t, spec.ID), "count ")
		spec.Machine.Restore = path
		s.start(t, spec)
		want := []string{"saved 0\n", "saved 1\n2\n"}[n]
		if out, code := s.exec(t, spec.ID, "sh", "-c", script); code != 0 || out != want {
			t.Errorf("when it went on: exit %d, output %q", code, out)
		}
		s.clockIsRight(t, spec.ID)
		s.waitLog(t, spec.ID, "count "+strconv.Itoa(counted+1))
	}
}

// clockAfterPause has a guest stand still for longer than its clock may be
// wrong afterwards.
func (s *suite) clockAfterPause(t *testing.T, id string) {
	t.Helper()
	if err := s.Engine.Pause(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * wrongClock)
	if err := s.Engine.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	s.clockIsRight(t, id)
}

// wrongClock is how far off a guest's clock may be.
const wrongClock = 2 * time.Second

func (s *suite) clockIsRight(t *testing.T, id string) {
	t.Helper()
	before := time.Now()
	out, _ := s.exec(t, id, "date", "+%s")
	after := time.Now()
	seconds, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if now := time.Unix(seconds, 0); err != nil || now.Before(before.Add(-wrongClock)) || now.After(after.Add(wrongClock)) {
		t.Errorf("it is %q in the guest between %d and %d, error %v", out, before.Unix(), after.Unix(), err)
	}
}

// entry is what a tree keeps of a file on its way.
type entry struct {
	Name, Link string
	Type       byte
	Mode       int64
	UID, GID   int
	Content    string
}

func (s *suite) agentFiles(t *testing.T) {
	spec := s.spec(t, `exec sleep 1000`)
	s.start(t, spec)
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	c := dial(ctx, t, s.Engine, spec.ID)
	defer c.Close()
	want := []entry{
		{Name: "tree/", Type: tar.TypeDir, Mode: 0o750, UID: 3, GID: 4},
		{Name: "tree/big", Type: tar.TypeReg, Mode: 0o4755, Content: strings.Repeat("0123456789abcdef", 1<<16)},
		{Name: "tree/link", Type: tar.TypeSymlink, Mode: 0o777, Link: "/nowhere"},
		{Name: "tree/small", Type: tar.TypeReg, Mode: 0o600, UID: 1000, GID: 1000, Content: "x"},
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range want {
		h := &tar.Header{Name: e.Name, Linkname: e.Link, Typeflag: e.Type, Mode: e.Mode, Uid: e.UID, Gid: e.GID, Size: int64(len(e.Content)), ModTime: time.Unix(1e9, 0)}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(ctx, "/root", &b); err != nil {
		t.Fatal(err)
	}
	stream, err := c.Get(ctx, "/root/tree")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	got := map[string]entry{}
	for r := tar.NewReader(stream); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimSuffix(h.Name, "/")] = entry{Name: h.Name, Link: h.Linkname, Type: h.Typeflag, Mode: h.Mode & 0o7777, UID: h.Uid, GID: h.Gid, Content: string(content)}
	}
	for _, e := range want {
		g := got[strings.TrimSuffix(e.Name, "/")]
		g.Name = e.Name
		if d := cmp.Diff(e, g); d != "" {
			t.Errorf("%s: %.500s", e.Name, d)
		}
	}
}

// endUnseen has a guest end while there is no daemon, and the next one tell
// how, and what the guest had written.
func (s *suite) endUnseen(t *testing.T) {
	spec := s.spec(t, `echo before; sleep 1; echo after; exit 6`)
	g := s.start(t, spec)
	if err := s.Engine.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(hang); !errors.Is(syscall.Kill(g.PID, 0), syscall.ESRCH); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it doesn't end")
		}
	}
	s.Engine = s.Reopen(t)
	s.exits = watch(s.Engine)
	for deadline := time.Now().Add(hang); ; time.Sleep(10 * time.Millisecond) {
		gs, err := s.Engine.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var found engine.Guest
		for _, l := range gs {
			if l.ID == spec.ID {
				found = l
			}
		}
		// Its process is gone a moment before the keeper has written what it
		// knows of it.
		if found.ID != "" && !found.Running {
			if found.Exit == nil || found.Exit.Code != 6 || len(found.Lost) != 0 {
				t.Errorf("guest %+v, exit %+v", found, found.Exit)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("guests %+v", gs)
		}
	}
	if out := s.log(t, spec.ID); !strings.Contains(out, "before\nafter\n") {
		t.Errorf("output %q", out)
	}
	// Also for somebody who comes late.
	c, err := s.Engine.Console(t.Context(), spec.ID, engine.ConsoleOptions{Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if out, err := io.ReadAll(c.Stdout()); err != nil || !strings.HasSuffix(string(out), "before\nafter\n") {
		t.Errorf("output %q, error %v", out, err)
	}
	if st, err := c.Exit(t.Context()); err != nil || st.Code != 6 {
		t.Errorf("exit %+v, error %v", st, err)
	}
}
