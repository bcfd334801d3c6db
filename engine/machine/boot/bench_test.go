package boot_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkBoot is the time from the start of User Mode Linux to the entry
// point's first output and to an answer of the agent, beside that which the
// same kernel takes to an init that only powers off.
func BenchmarkBoot(b *testing.B) {
	fix := need(b)
	dir := b.TempDir()
	bare := filepath.Join(dir, "bare")
	if err := bareInitramfs(bare); err != nil {
		b.Fatal(err)
	}
	var entry, agent, off, alone time.Duration
	n := 0
	for b.Loop() {
		n++
		g := newGuest(b, "echo up; read line")
		g.boot.Process.Stdin = true
		g.start()
		g.wait(&g.stdout, "up")
		entry += time.Since(g.started)
		c := g.client(g.session())
		if err := c.Started(g.context()); err != nil {
			b.Fatal(err)
		}
		agent += time.Since(g.started)
		in, err := c.Input(g.context())
		if err != nil {
			b.Fatal(err)
		}
		in.Close()
		g.end()
		off += time.Since(g.started)

		start := time.Now()
		cmd := exec.Command(umlProgram, "mem=128M", "initrd="+bare, "uml_dir="+dir, "ubd0r="+fix.image, "quiet", "panic=-1", "con=null")
		if out, err := cmd.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("halted")) {
			b.Fatalf("%v: %s", err, out)
		}
		alone += time.Since(start)
	}
	for name, d := range map[string]time.Duration{"entry-ms": entry, "agent-ms": agent, "off-ms": off, "bare-ms": alone} {
		b.ReportMetric(float64(d.Milliseconds())/float64(n), name)
	}
	b.ReportMetric(float64(agent)/float64(alone), "agent/bare")
}

// bareInitramfs has nothing but an init that powers off.
func bareInitramfs(file string) error {
	exe, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		return err
	}
	var c cpio
	c.add("dev", 0o40755, 0, 0, nil)
	c.add("dev/console", 0o20600, 5, 1, nil)
	c.add("bin", 0o40755, 0, 0, nil)
	c.add("bin/busybox", 0o100755, 0, 0, program)
	c.add("init", 0o100755, 0, 0, []byte("#!/bin/busybox sh\nexec /bin/busybox poweroff -f\n"))
	return c.write(file)
}
