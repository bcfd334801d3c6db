package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Group is one guest's cgroups.
type Group struct {
	t  *Tree
	id string
}

// Options of a new group.
type Options struct {
	// Delegate makes a root of its own for the guest in every hierarchy,
	// which it may populate.
	Delegate bool
	Owner    uint32 // host id of the guest's root
	CPUSet   bool   // the cpuset controller is needed
}

// leaf is the child that a guest with cgroups of its own has as its root.
const leaf = "guest"

// Group is the handle of id, which may or may not exist.
func (t *Tree) Group(id string) *Group { return &Group{t: t, id: id} }

// dir is the group's directory in the hierarchy at root.
func (g *Group) dir(root string) string { return filepath.Join(root, g.t.parent, g.id) }

// V2 is the group's directory in the version 2 hierarchy.
func (g *Group) V2() string { return g.dir(g.t.unified) }

// file is the path of a control file of the controller.
func (g *Group) file(controller, name string) string {
	if g.t.on[controller] {
		return filepath.Join(g.V2(), name)
	}
	return filepath.Join(g.dir(g.t.v1[v1name(controller)]), name)
}

// Create makes the group's directories and attaches the device filter.
func (t *Tree) Create(id string, o Options) (*Group, error) {
	g := t.Group(id)
	if err := g.create(o); err != nil {
		_ = g.Kill()
		for _, root := range t.roots() {
			_ = removeTree(g.dir(root))
		}
		return nil, err
	}
	return g, nil
}

func (g *Group) create(o Options) error {
	for _, root := range g.needed(o) {
		if err := mkdir(g.dir(root)); err != nil {
			return err
		}
	}
	if dir := g.dir(g.t.v1["cpuset"]); g.t.v1["cpuset"] != "" && exists(dir) {
		if err := fillCPUSet(dir); err != nil {
			return err
		}
	}
	if err := g.filterDevices(); err != nil {
		return err
	}
	if o.Delegate {
		return g.delegate(o.Owner)
	}
	return nil
}

// needed are the hierarchies that the guest must have a group in. One that
// may mount hierarchies gets one in each, or it would see the host's whole
// tree there.
func (g *Group) needed(o Options) []string {
	if o.Delegate {
		return g.t.roots()
	}
	r := []string{g.t.unified}
	for _, c := range Controllers {
		if c == "cpuset" && !o.CPUSet || g.t.on[c] {
			continue
		}
		if dir := g.t.v1[v1name(c)]; dir != "" && !slices.Contains(r, dir) {
			r = append(r, dir)
		}
	}
	if dir := g.t.v1["devices"]; g.t.devices < 0 && !slices.Contains(r, dir) {
		r = append(r, dir)
	}
	return r
}

// mkdir makes a group's directory and, the first time, its parent.
func mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(filepath.Dir(dir), 0o755); err == nil || errors.Is(err, os.ErrExist) {
			err = os.Mkdir(dir, 0o755)
		}
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// fillCPUSet copies the CPUs and memory nodes down to a new version 1
// cpuset, which is born empty and admits no process until it has some.
func fillCPUSet(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) != "" {
			continue
		}
		parent := filepath.Dir(dir)
		b, err = os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(b)) == "" {
			if err := fillCPUSet(parent); err != nil {
				return err
			}
			if b, err = os.ReadFile(filepath.Join(parent, name)); err != nil {
				return err
			}
		}
		if err := write(filepath.Join(dir, name), strings.TrimSpace(string(b))); err != nil {
			return err
		}
	}
	return nil
}

// delegate makes the guest's own root: a child in the version 2 hierarchy.
//
// Nothing of version 1 is handed over, not even name=systemd, which has no
// controller: nothing there bounds how many groups a guest makes, nor how
// deep, and the kernel charges them to nobody. Measured: a guest limited to
// 128 MiB took 5 GiB of the host's memory in 25 seconds. What systemd keeps in
// name=systemd beside version 2 is a copy that it does without.
func (g *Group) delegate(owner uint32) error {
	// Bounds what a guest's groups may cost, and their rmdir when it is dead.
	if err := write(filepath.Join(g.V2(), "cgroup.max.descendants"), "2000"); err != nil {
		return err
	}
	if err := write(filepath.Join(g.V2(), "cgroup.max.depth"), "24"); err != nil {
		return err
	}
	child := filepath.Join(g.V2(), leaf)
	if err := mkdir(child); err != nil {
		return err
	}
	for c := range g.t.on {
		if err := write(filepath.Join(g.V2(), "cgroup.subtree_control"), "+"+c); err != nil {
			return err
		}
	}
	// The files that /sys/kernel/cgroup/delegate names; what a kernel
	// doesn't have is none to hand over.
	names := []string{".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group"}
	return chown(child, owner, names)
}

func chown(dir string, owner uint32, names []string) error {
	for _, n := range names {
		if err := os.Lchown(filepath.Join(dir, n), int(owner), int(owner)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Placement is what a process must be born into or moved to: the version 2
// directory and the version 1 cgroup.procs files.
func (g *Group) Placement() (v2 *os.File, procs []string, err error) {
	dir := g.V2()
	if exists(filepath.Join(dir, leaf)) {
		dir = filepath.Join(dir, leaf)
	}
	if v2, err = os.OpenFile(dir, unix.O_DIRECTORY|unix.O_PATH, 0); err != nil {
		return nil, nil, err
	}
	for _, root := range g.t.roots()[1:] {
		if d := g.dir(root); exists(d) {
			procs = append(procs, filepath.Join(d, "cgroup.procs"))
		}
	}
	return v2, procs, nil
}

// Hierarchy is what a guest mounts to see its own cgroups.
type Hierarchy struct {
	Name    string // directory below /sys/fs/cgroup; empty for version 2 alone
	V2      bool
	Options []string // of a version 1 mount
}

// Hierarchies lists those that the guest has a group in. Version 2 alone is
// one with an empty name; a mixture has them side by side, as on the host.
func (g *Group) Hierarchies() []Hierarchy {
	var hs []Hierarchy
	for _, root := range g.t.roots()[1:] {
		if !exists(g.dir(root)) {
			continue
		}
		h := Hierarchy{}
		for o, dir := range g.t.v1 {
			if dir == root {
				h.Options = append(h.Options, o)
			}
		}
		slices.Sort(h.Options)
		h.Name = strings.TrimPrefix(strings.Join(h.Options, ","), "name=")
		hs = append(hs, h)
	}
	if len(hs) == 0 {
		return []Hierarchy{{V2: true}}
	}
	return append(hs, Hierarchy{Name: "unified", V2: true})
}

// Freeze stops all processes of the group and returns when they have
// stopped; Thaw lets them go on.
func (g *Group) Freeze(ctx context.Context) error {
	if err := write(filepath.Join(g.V2(), "cgroup.freeze"), "1"); err != nil {
		return err
	}
	return g.waitEvent(ctx, "frozen 1")
}

// Thaw undoes Freeze.
func (g *Group) Thaw(ctx context.Context) error {
	if err := write(filepath.Join(g.V2(), "cgroup.freeze"), "0"); err != nil {
		return err
	}
	return g.waitEvent(ctx, "frozen 0")
}

// Kill kills every process in the group, also ones that are being forked
// (cgroup-v2.rst, cgroup.kill).
func (g *Group) Kill() error {
	err := write(filepath.Join(g.V2(), "cgroup.kill"), "1")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// waitEvent returns when cgroup.events holds the line, which the kernel
// announces by POLLPRI.
func (g *Group) waitEvent(ctx context.Context, line string) error {
	f, err := os.Open(filepath.Join(g.V2(), "cgroup.events"))
	if err != nil {
		return err
	}
	defer f.Close()
	stop, err := wakeup(ctx)
	if err != nil {
		return err
	}
	defer stop.Close()
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return err
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), line) {
			return nil
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(stop.r), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for %q in cgroup %s: %w", line, g.id, err)
		}
	}
}

// Remove kills what is left in the group and removes its directories. It is
// no error if they are gone.
func (g *Group) Remove(ctx context.Context) error {
	if exists(g.V2()) {
		if err := g.Kill(); err != nil {
			return err
		}
		if err := g.waitEvent(ctx, "populated 0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var errs []error
	// Version 2 last: its events tell of the processes in the others.
	roots := g.t.roots()
	slices.Reverse(roots)
	for _, root := range roots {
		if err := removeWhenEmpty(ctx, g.dir(root)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// removeWhenEmpty removes a group once the last thread has left it. The
// keeper forks each guest from a thread of its own in the guest's version 1
// groups, which ends a moment after the clone; version 1 has no event to
// wait for it with.
func removeWhenEmpty(ctx context.Context, dir string) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeTree(dir)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// removeTree removes a group and those that a guest made below it. A guest's
// groups hold no process any more, so it can't add to them.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	es, rerr := os.ReadDir(dir)
	if rerr != nil {
		return rerr
	}
	for _, e := range es {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
