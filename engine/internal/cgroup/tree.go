// Package cgroup bounds, freezes, measures and kills guests through cgroups,
// whatever mixture of version 1 and 2 the host has. The version 2 hierarchy
// is always there, if need be without controllers: freezing, killing, pressure
// and the device filter come from it alone. Each controller is used where
// the host has it.
//
// A guest's group is PARENT/ID in every hierarchy that it needs. A guest that
// manages cgroups of its own gets a child of it as its root, so that its
// limits lie outside of its reach (cgroup-v2.rst, "Delegation").
//
// Calls for different groups may run at the same time.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// Controllers that Cleave uses, by their version 2 names.
var Controllers = []string{"cpu", "memory", "io", "pids", "cpuset"}

// Tree is the host's hierarchies and our directory in them.
type Tree struct {
	parent  string            // name of our directory
	unified string            // version 2 root
	v1      map[string]string // version 1 controller or name=NAME: its root
	on      map[string]bool   // version 2 controllers that are enabled for guests
	allowed []Device
	devices int      // fd of the device filter for guests; -1 without
	keep    *os.File // a version 2 mount of our own
	// Refused says why a controller can't be used.
	Refused map[string]string
}

// Open finds the hierarchies and makes the directory of the scope in them.
// Guests may use the devices.
func Open(scope string, devices []Device) (*Tree, error) {
	parent := "cleave"
	if scope != "" {
		parent += "-" + scope
	}
	t := &Tree{parent: parent, allowed: devices, v1: map[string]string{}, on: map[string]bool{}, Refused: map[string]string{}, devices: -1}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	for _, m := range mounts {
		if m.FSType == "cgroup2" {
			if t.unified == "" {
				t.unified = m.Mountpoint
			}
			continue
		}
		for _, o := range strings.Split(m.VFSOptions, ",") {
			if strings.HasPrefix(o, "name=") || slices.Contains(legacy, o) {
				t.v1[o] = m.Mountpoint
			}
		}
	}
	if t.unified == "" {
		// The version 2 hierarchy exists in every kernel, mounted or not.
		if t.keep, err = mountfd.New("cgroup2").Mount(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC); err != nil {
			return nil, err
		}
		t.unified = fmt.Sprintf("/proc/self/fd/%d", t.keep.Fd())
	}
	if err := t.prepare(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// legacy are the version 1 controllers whose hierarchies a guest may be
// given; others carry nothing that bounds or shows a guest.
var legacy = []string{"cpu", "cpuacct", "memory", "blkio", "pids", "cpuset", "devices", "freezer", "net_cls", "net_prio", "perf_event", "hugetlb"}

// v1name is a controller's name in version 1.
func v1name(controller string) string {
	if controller == "io" {
		return "blkio"
	}
	return controller
}

// prepare makes our directory in the version 2 hierarchy and hands the
// controllers down to it. Directories in version 1 hierarchies come with the
// first guest that needs them.
func (t *Tree) prepare() error {
	dir := filepath.Join(t.unified, t.parent)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(t.unified, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read cgroup controllers: %w", err)
	}
	have := strings.Fields(string(b))
	for _, c := range Controllers {
		if !slices.Contains(have, c) {
			if t.v1[v1name(c)] == "" {
				t.Refused[c] = "the kernel offers no such controller in any mounted hierarchy"
			}
			continue
		}
		err := write(filepath.Join(t.unified, "cgroup.subtree_control"), "+"+c)
		if err == nil {
			err = write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		}
		if err != nil {
			t.Refused[c] = err.Error()
			continue
		}
		t.on[c] = true
	}
	return t.prepareDevices()
}

// prepareDevices loads the device filter, or falls back to the version 1
// controller.
func (t *Tree) prepareDevices() error {
	fd, err := loadDeviceFilter(t.allowed)
	if err == nil {
		t.devices = fd
		return nil
	}
	if t.v1["devices"] == "" {
		return fmt.Errorf("no device filter: %w, and no version 1 devices controller is mounted", err)
	}
	t.Refused["device filter"] = err.Error()
	return nil
}

// Version is "v2", "v1" or "hybrid", for people.
func (t *Tree) Version() string {
	v1, v2 := 0, len(t.on)
	for _, c := range Controllers {
		if t.v1[v1name(c)] != "" && !t.on[c] {
			v1++
		}
	}
	switch {
	case v1 == 0:
		return "v2"
	case v2 == 0:
		return "v1"
	}
	return "hybrid"
}

// Where says how a controller is used: "v2", "v1" or "" for not at all.
func (t *Tree) Where(controller string) string {
	switch {
	case t.on[controller]:
		return "v2"
	case t.v1[v1name(controller)] != "":
		return "v1"
	}
	return ""
}

// DeviceFilter says what enforces the device policy: "bpf" or "v1".
func (t *Tree) DeviceFilter() string {
	if t.devices >= 0 {
		return "bpf"
	}
	return "v1"
}

// SwapAccounting tells whether a guest's swap can be bounded.
func (t *Tree) SwapAccounting() bool {
	probe := filepath.Join(t.v1["memory"], "memory.memsw.limit_in_bytes")
	if t.on["memory"] {
		probe = filepath.Join(t.unified, t.parent, "memory.swap.max")
	}
	_, err := os.Stat(probe)
	return err == nil
}

// Pressure tells whether the kernel measures stalls for each guest.
func (t *Tree) Pressure() bool {
	b, err := os.ReadFile(filepath.Join(t.unified, t.parent, "cpu.pressure"))
	return err == nil && len(b) > 0
}

// List names the groups that exist.
func (t *Tree) List() ([]string, error) {
	es, err := os.ReadDir(filepath.Join(t.unified, t.parent))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range es {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// roots are the distinct roots of hierarchies, version 2 first.
func (t *Tree) roots() []string {
	r := []string{t.unified}
	for _, dir := range t.v1 {
		if !slices.Contains(r, dir) {
			r = append(r, dir)
		}
	}
	slices.Sort(r[1:])
	return r
}

// Destroy removes our directories; groups that still exist keep them.
func (t *Tree) Destroy() {
	for _, r := range t.roots() {
		os.Remove(filepath.Join(r, t.parent))
	}
}

// Close lets go of descriptors.
func (t *Tree) Close() error {
	if t.devices >= 0 {
		unix.Close(t.devices)
	}
	if t.keep != nil {
		return t.keep.Close()
	}
	return nil
}

// write sets a control file. The kernel reads one value per write. It may
// refuse one because a signal is pending (a memory limit that has to reclaim
// first), and the runtime sends its threads signals to preempt them.
func write(file, value string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == nil {
		for err = unix.EINTR; err == unix.EINTR; {
			_, err = unix.Write(fd, []byte(value))
		}
		unix.Close(fd)
	}
	if err != nil {
		return &os.PathError{Op: "write " + value + " to", Path: file, Err: err}
	}
	return nil
}
