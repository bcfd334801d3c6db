package container

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
	"github.com/cleave-project/cleave/engine/internal/validate"
)

// probeImage is the EROFS image of an empty directory, made by
// mkfs.erofs -T0 --all-root -U 00000000-0000-0000-0000-000000000000.
//
//go:embed probe.erofs
var probeImage []byte

// States of a finding.
const (
	ok      = "ok"
	limited = "limited"
	missing = "missing"
)

// report collects findings; the first that is missing and needed makes the
// engine unavailable.
type report struct {
	findings []api.Finding
	reason   *api.Error
}

func (r *report) add(name, state, detail, remedy string) {
	r.findings = append(r.findings, api.Finding{Area: "container", Name: name, State: state, Detail: detail, Remedy: remedy})
}

// need adds what containers can't be without.
func (r *report) need(name string, err error, detail, remedy string) {
	if err == nil {
		r.add(name, ok, detail, "")
		return
	}
	why := api.AsError(err).Message // without its hint, for which there is the remedy
	r.add(name, missing, why, remedy)
	if r.reason == nil {
		r.reason = api.Errorf(api.CodeUnsupported, "this host can't run containers: %s: %s", name, why).WithHint("%s", remedy)
	}
}

// Probe implements engine.Engine. It tries what a start needs, on the file
// system that holds the guests' data.
func (e *Engine) Probe(ctx context.Context) (engine.Capabilities, []api.Finding) {
	r := &report{}
	e.probeMounts(ctx, r)
	e.probeProcess(r)
	e.probeCgroups(r)
	return engine.Capabilities{
		Available: r.reason == nil, Pause: true, Resize: true, WriteLimits: true, HostPath: true, Trees: true, Archs: []string{runtime.GOARCH}, Reason: r.reason,
	}, r.findings
}

// probeMounts builds a guest's root around a process with an id range.
func (e *Engine) probeMounts(ctx context.Context, r *report) {
	userns, err := e.probeNamespaces(ctx, r)
	r.need("namespaces", err, "user, mount, pid, network, ipc, uts and cgroup", namespaceRemedy())
	if err != nil {
		return
	}
	defer userns.Close()
	dir, err := e.probeDir()
	if err != nil {
		r.need("root file systems", err, "", "free space, or mount the data directory writable")
		return
	}
	defer os.RemoveAll(dir)
	feature := e.feature
	im := newImages(&feature)
	defer im.close()
	image, err := im.mount("probe", engine.Image{Digest: "probe", EROFS: filepath.Join(dir, "image")})
	r.need("EROFS", err, map[bool]string{true: "images are mounted from their files", false: "images are mounted by loop devices"}[feature.fileEROFS && feature.cloneDetached],
		"use a kernel with EROFS (CONFIG_EROFS_FS), and loop devices before Linux 6.12")
	if err != nil {
		return
	}
	defer image.Close()
	volume, err := mountfd.ClonePath(dir)
	if err == nil {
		defer volume.Close()
		err = errors.Join(idmap(image, userns, 0), idmap(volume, userns, 0))
	}
	kind := fsName(dir)
	r.need("idmapped mounts", err, "on "+kind+" and EROFS", "keep the data directory on ext4, xfs, btrfs or tmpfs, with Linux 5.19 or newer")
	if err != nil {
		return
	}
	root, err := feature.overlay(image, volume, probeID)
	if err == nil {
		err = probeCopyUp(root)
		root.Close()
	}
	r.need("overlay", err, map[bool]string{true: "layers by descriptor", false: "layers by path, in a mount namespace of our own"}[feature.layerFDs],
		"use Linux 5.19 or newer, which takes idmapped layers, with overlayfs (CONFIG_OVERLAY_FS)")
}

// probeID is the base of an id range that no guest has: files with it exist
// only while a probe runs.
const probeID = 0x7fff0000

// probeNamespaces starts an agent in all namespaces, and returns its user
// namespace.
func (e *Engine) probeNamespaces(ctx context.Context, r *report) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix"}) // autobound: no name to clash or to remove
	if err != nil {
		return nil, err
	}
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		return nil, err
	}
	defer lf.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: probeID, Size: 65536}}
	c := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", e.agent.Fd()), setup.ArgServe)
	c.Env, c.ExtraFiles = agentEnv, []*os.File{lf}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: cloneFlags &^ unix.CLONE_NEWCGROUP, Unshareflags: unix.CLONE_NEWCGROUP,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(c.Process.Pid, 0)
	if err == nil {
		defer unix.Close(pidfd)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		probeEnd(r, pidfd)
	}()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", c.Process.Pid))
}

// probeEnd looks whether the end of a process that is gone can be learned
// from its pidfd, when its parent took the knowledge with it.
func probeEnd(r *report, pidfd int) {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err == nil && info.Mask&unix.PIDFD_INFO_EXIT != 0 {
		r.add("exit statuses", ok, "known also when the keeper is killed before its guests", "")
	} else {
		r.add("exit statuses", limited, "those of guests that outlive a killed keeper are lost", "use Linux 6.15 or newer")
	}
}

// namespaceRemedy looks for what forbids user namespaces.
func namespaceRemedy() string {
	for file, remedy := range map[string]string{
		"/proc/sys/user/max_user_namespaces": "set sysctl user.max_user_namespaces to 15000 or more",
		"/proc/sys/user/max_mnt_namespaces":  "set sysctl user.max_mnt_namespaces to 15000 or more",
		"/proc/sys/user/max_net_namespaces":  "set sysctl user.max_net_namespaces to 15000 or more",
		"/proc/sys/user/max_pid_namespaces":  "set sysctl user.max_pid_namespaces to 15000 or more",
	} {
		if b, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(b)) == "0" {
			return remedy
		}
	}
	return "run the daemon as root of the host, outside of any container, on a kernel with all namespaces (CONFIG_USER_NS and others)"
}

// probeDir is a root volume beside the guests' logs, with an image.
func (e *Engine) probeDir() (string, error) {
	base := filepath.Dir(e.LogDir("probe"))
	if err := os.MkdirAll(base, 0o700); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(base, ".probe-")
	if err != nil {
		return "", err
	}
	err = errors.Join(prepareVolume(dir), os.WriteFile(filepath.Join(dir, "image"), probeImage, 0o600))
	if err != nil {
		os.RemoveAll(dir)
	}
	return dir, err
}

// probeCopyUp writes as the guest's root would.
func probeCopyUp(root *os.File) error {
	return asOwner(probeID, func() error { return unix.Mkdirat(int(root.Fd()), "made", 0o755) })
}

// fsName is a file system's name for people.
func fsName(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "an unknown file system"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.F2FS_SUPER_MAGIC: "f2fs",
		0x2fc12fc1: "zfs",
	}
	return cmp.Or(names[int64(st.Type)], fmt.Sprintf("a file system of type %#x", st.Type)) //nolint:unconvert // int32 on some architectures
}

// probeProcess tries what concerns processes.
func (e *Engine) probeProcess(r *report) {
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	err := seccompAction(&action)
	r.need("seccomp", err, "system call filter", "use a kernel with CONFIG_SECCOMP_FILTER")
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		unix.Close(fd)
	}
	r.need("pidfd", err, "processes are held by descriptor", "use Linux 5.3 or newer")
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && lim.Max < uint64(validate.DefaultRlimits["nofile"].Hard) && !canRaiseLimits() {
		r.add("resource limits", limited, fmt.Sprintf("guests can have at most %d open files", lim.Max),
			"give the daemon CAP_SYS_RESOURCE or a higher limit of open files (LimitNOFILE= in its unit)")
	} else {
		r.add("resource limits", ok, "", "")
	}
}

func canRaiseLimits() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// probeCgroups says which limits hold.
func (e *Engine) probeCgroups(r *report) {
	t := e.cgroups
	r.add("cgroups", ok, "version: "+t.Version(), "")
	for _, c := range cgroup.Controllers {
		name := "cgroup " + c
		switch where := t.Where(c); {
		case where == "":
			r.add(name, missing, t.Refused[c], "enable the controller: no cgroup_disable= at boot, and no other manager that holds it")
		case where == "v1" && c == "io":
			r.add(name, limited, "version 1: limits hold for reads and for writes that bypass the page cache or are synchronous",
				"boot with cgroup version 2 (systemd.unified_cgroup_hierarchy=1)")
		case where == "v1" && c == "memory":
			r.add(name, limited, "version 1: a guest that is out of memory loses one process, and not all at once",
				"boot with cgroup version 2 (systemd.unified_cgroup_hierarchy=1)")
		default:
			r.add(name, ok, "version "+where[1:], "")
		}
	}
	r.add("device policy", ok, map[string]string{"bpf": "BPF program on each guest's cgroup", "v1": "version 1 devices controller"}[t.DeviceFilter()], "")
	if t.SwapAccounting() {
		r.add("swap limits", ok, "", "")
	} else {
		r.add("swap limits", missing, "the kernel doesn't count a guest's swap; a guest can't be given a swap limit", "boot with swapaccount=1")
	}
	if t.Pressure() {
		r.add("pressure", ok, "stall times of each guest", "")
	} else {
		r.add("pressure", missing, "the kernel measures no stalls", "boot with psi=1")
	}
}

// seccompAction asks whether filters can return an action.
func seccompAction(action *uint32) error {
	const getActionAvail = 2 // SECCOMP_GET_ACTION_AVAIL
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, getActionAvail, 0, uintptr(unsafe.Pointer(action))); e != 0 {
		return e
	}
	return nil
}
