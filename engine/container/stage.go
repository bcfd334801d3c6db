package container

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/internal/mountfd"
)

// A guest that may mount could make a read-only volume writable again: it
// owns its mount namespace, and a mount that came into it by descriptor is as
// good as its own. The kernel locks a mount's flags only when the mount gets
// from one user namespace to another by copy or propagation
// (mount_namespaces(7), "Restrictions on mount namespaces").
//
// So these mounts go through the stage: a shared mount on the host, of which
// each guest is born with a copy. What is attached there shows up in the
// guest, with locked flags, and setup clones it from there. The stage is
// empty again when the guest has started.

// stageName is a directory beside the runtime directories; no id begins with
// a dot.
const stageName = ".stage"

// openStage makes the stage once, before the first guest that needs it is
// cloned.
func (e *Engine) openStage() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	dir := filepath.Join(e.opts.Run, stageName)
	if e.staged {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the stage for read-only mounts: %w", err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("make the stage for read-only mounts: %w", err)
	}
	// Private first, so that nothing attached here goes anywhere else than
	// to the guests.
	for _, propagation := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", dir, "", propagation, ""); err != nil {
			closeStage(dir)
			return fmt.Errorf("make the stage for read-only mounts: %w", err)
		}
	}
	e.staged = true
	return nil
}

// closeStage removes a stage, also one that a daemon that died left.
func closeStage(dir string) {
	for unix.Unmount(dir, unix.MNT_DETACH) == nil {
	}
	os.RemoveAll(dir)
}

// stage attaches a mount to the stage. It returns its path there, and a
// descriptor of the copy that the guest with the first process pid has: the
// path leads to the same place in the guest's copy of the host's tree, in
// which nothing but setup runs yet.
func (e *Engine) stage(m *os.File, id string, n, pid int) (path string, copied *os.File, err error) {
	path = filepath.Join(e.opts.Run, stageName, id+"-"+strconv.Itoa(n))
	if isDir(m) {
		err = os.Mkdir(path, 0o700)
	} else {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		return "", nil, fmt.Errorf("stage a read-only mount: %w", err)
	}
	at, err := os.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", nil, err
	}
	defer at.Close()
	if err := mountfd.Attach(m, at); err != nil {
		os.Remove(path)
		return "", nil, err
	}
	abs, err := filepath.Abs(path)
	if err == nil {
		copied, err = os.OpenFile(fmt.Sprintf("/proc/%d/root%s", pid, abs), unix.O_PATH|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return path, nil, fmt.Errorf("stage a read-only mount: %w", err)
	}
	return path, copied, nil
}

// unstage takes a mount off the stage; the guest keeps its clone.
func unstage(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("clear the stage of %s: %w", path, err)
	}
	return os.Remove(path)
}
