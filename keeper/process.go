package keeper

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// launch is what it takes to clone a guest's first process.
type launch struct {
	request *startMessage
	exe     *os.File
	cgroup  *os.File // or nil
	files   []*os.File
	stdio   [3]int
}

// clone makes the process. On return it has been executed, and is in its
// cgroups; its OOM score is that of an ordinary process again.
func (l *launch) clone() (pid, pidfd int, err error) {
	if l.request.Clone&^cloneFlags != 0 {
		return 0, -1, api.Errorf(api.CodeInvalid, "clone flags %#x are not all CLONE_NEW* flags", l.request.Clone)
	}
	onOwnThread(func() {
		// A private table of descriptors, since syscall.StartProcess leaks a
		// pipe when the clone fails (go1.26): it goes with the thread.
		if err = unix.Unshare(unix.CLONE_FILES); err != nil {
			return
		}
		var fds descriptorSet
		if fds, err = l.descriptors(); err != nil {
			return
		}
		if err = fds.alone(); err != nil {
			return
		}
		pid, err = l.forkInCgroups(fds)
	})
	if pid == 0 {
		return 0, -1, err
	}
	if err == nil {
		err = makeOrdinary(pid)
	}
	if err == nil {
		if pidfd, err = unix.PidfdOpen(pid, 0); err == nil {
			return pid, pidfd, nil
		}
	}
	_ = unix.Kill(pid, unix.SIGKILL) // not reaped yet: still ours
	waitChild(pid)
	return 0, -1, err
}

// forkInCgroups may return both a pid and an error: then the child is to be
// killed.
func (l *launch) forkInCgroups(fds descriptorSet) (pid int, err error) {
	home, err := enterCgroups(l.request.CgroupProcs)
	if err == nil {
		pid, err = l.forkAsOwner(fds)
	}
	// Before the thread ends, which may take a while: whoever kills what is
	// in the guest's cgroup must not find the keeper there.
	if herr := joinCgroups(home); err == nil && herr != nil {
		err = fmt.Errorf("leave the guest's cgroups: %w", herr)
	}
	return pid, err
}

// forkAsOwner forks with the effective user that the guest's root is on the
// host. The kernel charges what a guest uses of its countable resources
// (inotify instances and watches, namespaces: /proc/sys/user) to the user who
// made its user namespace as well. Were that root for all guests, one of them
// could use up what the host and every other guest has: 128 inotify instances
// by default (kernel/ucount.c, inc_ucount).
func (l *launch) forkAsOwner(fds descriptorSet) (pid int, err error) {
	owner := slices.IndexFunc(l.request.UIDMap, func(m IDMap) bool { return m.Inside == 0 })
	if l.request.Clone&unix.CLONE_NEWUSER == 0 || owner < 0 {
		return l.fork(fds)
	}
	// The capabilities stay, also while the user is another one.
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, secbitNoSetuidFixup, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("keep capabilities: %w", err)
	}
	own := uint32(unix.Geteuid())
	if err := setEffectiveUser(l.request.UIDMap[owner].Outside); err != nil {
		return 0, err
	}
	pid, err = l.fork(fds)
	if uerr := setEffectiveUser(own); err == nil {
		err = uerr
	}
	return pid, err
}

// secbitNoSetuidFixup is SECBIT_NO_SETUID_FIXUP (capabilities(7)).
const secbitNoSetuidFixup = 1 << 2

// setEffectiveUser is for the calling thread alone; package syscall's would
// change all threads.
func setEffectiveUser(uid uint32) error {
	const same = ^uintptr(0)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, same, uintptr(uid), same); e != 0 {
		return fmt.Errorf("become user %d: %w", uid, e)
	}
	return nil
}

func (l *launch) fork(fds descriptorSet) (pid int, err error) {
	exe, err := dupAbove(fds.exe(), fds.inherited())
	if err != nil {
		return 0, fmt.Errorf("duplicate the executable's descriptor: %w", err)
	}
	defer unix.Close(exe)
	var files []uintptr
	for _, fd := range fds.inherited() {
		files = append(files, uintptr(fd))
	}
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   l.request.Env,
		Files: files,
		Sys: &syscall.SysProcAttr{
			// The cgroup namespace comes by unshare in the child: a clone
			// would root it at the parent's cgroup, also with
			// CLONE_INTO_CGROUP (copy_cgroup_ns takes that of current).
			Cloneflags:   l.request.Clone &^ unix.CLONE_NEWCGROUP,
			Unshareflags: l.request.Clone & unix.CLONE_NEWCGROUP,
			UidMappings:  sysMap(l.request.UIDMap),
			GidMappings:  sysMap(l.request.GIDMap),
			// Root in the guest may drop and set groups as it likes.
			GidMappingsEnableSetgroups: true,
			Setsid:                     true,
			Setctty:                    l.request.Terminal,
		},
	}
	if l.request.Clone&unix.CLONE_NEWUSER != 0 {
		// Exec as an unmapped user would drop the capabilities.
		attr.Sys.Credential = &syscall.Credential{}
	}
	if l.cgroup != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fds.cgroup()
	}
	pid, _, err = syscall.StartProcess("/proc/self/fd/"+strconv.Itoa(exe), l.request.Args, attr)
	runtime.KeepAlive(l)
	if err != nil {
		return 0, cloneError(err, l.request)
	}
	return pid, nil
}

func sysMap(m []IDMap) (out []syscall.SysProcIDMap) {
	for _, r := range m {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(r.Inside), HostID: int(r.Outside), Size: int(r.Count)})
	}
	return out
}

// onOwnThread runs f on a thread that ends with it, whatever f did to the
// thread. The process's first thread won't end, so it is not used.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// makeOrdinary takes away what the keeper has arranged for itself.
func makeOrdinary(pid int) error {
	// Raising the score is always permitted. Where that would be lowering, and is
	// not permitted, the keeper has nothing arranged that could be inherited.
	err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0)
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}
