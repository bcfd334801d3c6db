package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lxdImage is the alias of the image that is imported for a run.
const lxdImage = "cleave-bench"

// lxd launches guests of busybox by lxc, the client that a user types.
type lxd struct{ pool, version string }

// newLXD imports the image; nil if no initialised LXD answers.
func newLXD(ctx context.Context, bin, dir string) (*lxd, error) {
	if _, err := exec.LookPath("lxc"); err != nil {
		return nil, nil //nolint:nilerr // not installed is an answer
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	pools, err := exec.CommandContext(ctx, "lxc", "storage", "list", "--format", "csv").Output()
	if err != nil || len(pools) == 0 {
		return nil, nil //nolint:nilerr // nobody answers, or it was never initialised
	}
	l := &lxd{}
	fields := strings.Split(strings.TrimSpace(string(pools)), ",")
	l.pool = fields[0]
	if v, err := exec.CommandContext(ctx, "lxd", "--version").Output(); err == nil {
		l.version = strings.TrimSpace(string(v))
	}
	if len(fields) > 1 {
		l.version += ", " + fields[1] + " pool"
	}
	if err := tinyRoot(bin, filepath.Join(dir, "rootfs")); err != nil {
		return nil, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	meta := fmt.Sprintf("architecture: %s\ncreation_date: 1\nproperties: {os: busybox}\n", unix.ByteSliceToString(u.Machine[:]))
	if err := os.WriteFile(filepath.Join(dir, "metadata.yaml"), []byte(meta), 0o644); err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "image.tar.gz")
	if out, err := exec.CommandContext(ctx, "tar", "-C", dir, "-czf", archive, "metadata.yaml", "rootfs").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("packing LXD's image: %w\n%s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "lxc", "image", "import", archive, "--alias", lxdImage).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("lxc image import: %w\n%s", err, out)
	}
	return l, nil
}

func (l *lxd) launch(name string) *exec.Cmd {
	return exec.Command("lxc", "launch", "--quiet", lxdImage, name, "--no-profiles", "--storage", l.pool)
}

func (l *lxd) exec(name string) *exec.Cmd { return exec.Command("lxc", "exec", name, "--", "true") }

func (l *lxd) delete(name string) *exec.Cmd { return exec.Command("lxc", "delete", "--force", name) }
func (l *lxd) list() *exec.Cmd              { return exec.Command("lxc", "list") }

// remove takes the image and the guests of the run off again.
func (l *lxd) remove() error {
	if l == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names, err := exec.CommandContext(ctx, "lxc", "list", "--format", "csv", "--columns", "n", prefix).Output()
	for name := range strings.FieldsSeq(string(names)) {
		if strings.HasPrefix(name, prefix) {
			err = errors.Join(err, exec.CommandContext(ctx, "lxc", "delete", "--force", name).Run())
		}
	}
	return errors.Join(err, exec.CommandContext(ctx, "lxc", "image", "delete", lxdImage).Run())
}
