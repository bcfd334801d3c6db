package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// runc runs a bundle of busybox: runc's own default configuration, whose
// network namespace has nothing but a loopback.
type runc struct{ bundle, root string }

// newRunc makes the bundle; nil if runc is not installed.
func newRunc(bin, dir string) (*runc, error) {
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, nil //nolint:nilerr // not installed is an answer
	}
	r := &runc{bundle: filepath.Join(dir, "bundle"), root: filepath.Join(dir, "state")}
	if err := tinyRoot(bin, filepath.Join(r.bundle, "rootfs")); err != nil {
		return nil, err
	}
	if out, err := exec.Command("runc", "spec", "--bundle", r.bundle).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("runc spec: %w\n%s", err, out)
	}
	path := filepath.Join(r.bundle, "config.json")
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var spec map[string]any
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, err
	}
	process, _ := spec["process"].(map[string]any)
	if process == nil {
		return nil, fmt.Errorf("%s has no process", path)
	}
	process["terminal"], process["args"] = false, []string{"sleep", "1000000"}
	if b, err = json.Marshal(spec); err != nil {
		return nil, err
	}
	return r, os.WriteFile(path, b, 0o644)
}

func (r *runc) command(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", r.root}, args...)...)
}

func (r *runc) launch(name string) *exec.Cmd {
	return r.command("run", "--detach", "--bundle", r.bundle, name)
}
func (r *runc) exec(name string) *exec.Cmd   { return r.command("exec", name, "true") }
func (r *runc) delete(name string) *exec.Cmd { return r.command("delete", "--force", name) }

// tinyRoot lays out a root file system of busybox alone.
func tinyRoot(bin, root string) error {
	for _, d := range []string{"bin", "sbin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(filepath.Join(bin, "busybox"))
	if err != nil {
		return fmt.Errorf("%w (make build)", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"sh", "sleep", "true"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	// LXD boots an init; this one keeps a sleep going.
	if err := os.Symlink("../bin/busybox", filepath.Join(root, "sbin/init")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "etc/inittab"), []byte("::respawn:/bin/sleep 1000000\n"), 0o644)
}
