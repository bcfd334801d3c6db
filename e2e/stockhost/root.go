package stockhost

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

//go:embed init.sh
var initScript string

//go:embed initramfs.sh
var initramfsScript string

// diskModules are what the root disk needs before it can be mounted.
var diskModules = []string{"virtio_pci", "virtio_blk"}

// writeInitramfs makes the archive that finds the root disk.
func (s *Spec) writeInitramfs(file string) error {
	busybox, err := os.ReadFile(s.Busybox)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	c := &cpio{w: &b}
	c.file("bin/busybox", 0o755, busybox)
	modules, order, err := s.Kernel.Files(diskModules...)
	if err != nil {
		return err
	}
	for _, name := range order {
		c.file(name, 0o644, modules[name])
	}
	c.dir("dev")
	c.dir("root")
	c.file("init", 0o755, []byte(strings.Replace(initramfsScript, "MODULES", "/"+strings.Join(order, " /"), 1)))
	if err := c.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

// writeDisk makes the root disk out of a directory beside it.
func (s *Spec) writeDisk(ctx context.Context, file string) error {
	root := file + ".d"
	defer os.RemoveAll(root)
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "root", "mnt", "var/lib", "bin", "sbin", "etc", "usr/bin", "usr/sbin"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	modules := filepath.Join(root, "lib/modules", s.Kernel.Release)
	if err := os.CopyFS(modules, os.DirFS(s.Kernel.Modules)); err != nil {
		return fmt.Errorf("copy modules: %w", err)
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n",
		"etc/hosts": "127.0.0.1 localhost stock\n::1 localhost\n", "etc/hostname": "stock\n",
		"etc/mtab": "", "etc/resolv.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	script := strings.ReplaceAll(initScript, "COMMAND", s.Command)
	if err := os.WriteFile(filepath.Join(root, "init"), []byte(script), 0o755); err != nil {
		return err
	}
	if err := copyFile(s.Busybox, filepath.Join(root, "bin/busybox")); err != nil {
		return err
	}
	for to, from := range s.Files {
		if err := s.copyProgram(ctx, root, from, to); err != nil {
			return err
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	// Nothing is to survive, so there is no journal to pay for.
	_, err = run(ctx, "", "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-d", root, file)
	return err
}

// diskSize is a sparse file's.
const diskSize = 12 << 30

// copyProgram copies a file, and the shared libraries that it needs to where
// it looks for them.
func (s *Spec) copyProgram(ctx context.Context, root, from, to string) error {
	if err := copyFile(from, filepath.Join(root, to)); err != nil {
		return err
	}
	out, err := run(ctx, "", "ldd", from)
	if err != nil {
		return nil // a static program, or none
	}
	for line := range strings.Lines(out) {
		for _, word := range strings.Fields(line) {
			if !filepath.IsAbs(word) {
				continue
			}
			if err := copyFile(word, filepath.Join(root, word)); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, st.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
