package storagetest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The ids of the suite's guests on the host.
const (
	guestBase  = 1_000_000
	guestCount = 65_536
)

func guestIDs() []syscall.SysProcIDMap {
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: guestBase, Size: guestCount}}
}

// asGuest makes cmd run as root of a user namespace.
func asGuest(cmd *exec.Cmd) *exec.Cmd {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: guestIDs(), GidMappings: guestIDs(), GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd
}

// Guest uses a directory as a guest does: through an idmapped mount of its
// own, as root of its own user namespace.
type Guest struct{ mount *os.File }

// NewGuest gives a guest the directory until the test ends.
func NewGuest(t testing.TB, dir string) *Guest {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatalf("clone mount of %s: %v", dir, err)
	}
	g := &Guest{os.NewFile(uintptr(fd), dir)}
	t.Cleanup(g.Close)
	ns := userNamespace(t)
	defer ns.Close()
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		t.Fatalf("map ids of mount of %s: %v", dir, err)
	}
	return g
}

// runInOverlay runs a script as a guest in an overlay of lower (read-only)
// and volume, which the guest mounts itself from the two mounts that it is
// handed, as a container's setup does.
func runInOverlay(lower, volume *Guest, script string) (string, error) {
	cmd := asGuest(exec.Command("/proc/self/exe"))
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS
	cmd.Env = append(os.Environ(), overlayEnv+"="+script)
	cmd.ExtraFiles = []*os.File{lower.mount, volume.mount} // 3 and 4
	return output(cmd)
}

// overlayChild is the process in the guest. It doesn't return unless it
// fails.
func overlayChild(script string) error {
	const top = "/mnt"
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for fd, name := range map[int]string{3: "lower", 4: "volume"} {
		if err := os.Mkdir(top+"/"+name, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, top+"/"+name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
	}
	if err := os.Mkdir(top+"/root", 0o755); err != nil {
		return err
	}
	options := "lowerdir=/mnt/lower,upperdir=/mnt/volume/upper,workdir=/mnt/volume/work,userxattr"
	if err := unix.Mount("overlay", top+"/root", "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	if err := os.Chdir(top + "/root"); err != nil {
		return err
	}
	return unix.Exec("/bin/sh", []string{"sh", "-ec", script}, os.Environ())
}

// userNamespace opens a user namespace with the guests' ids.
func userNamespace(t testing.TB) *os.File {
	t.Helper()
	cmd := asGuest(exec.Command("cat"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("make user namespace: %v", err)
	}
	defer cmd.Wait()
	defer in.Close()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Close ends the guest's use of the directory.
func (g *Guest) Close() { g.mount.Close() }

// Path leads through the guest's mount.
func (g *Guest) Path() string { return fmt.Sprintf("/proc/self/fd/%d", g.mount.Fd()) }

// Run runs a shell script in the directory and returns what it printed on
// standard output; the error has the rest.
func (g *Guest) Run(script string) (string, error) {
	cmd := asGuest(exec.Command("/bin/sh", "-ec", script))
	cmd.Dir = g.Path()
	return output(cmd)
}

func output(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}

// MustRun is Run of what must succeed.
func (g *Guest) MustRun(t testing.TB, script string) string {
	t.Helper()
	out, err := g.Run(script)
	if err != nil {
		t.Fatalf("guest ran %q: %v", script, err)
	}
	return out
}

// FillUp writes until it is stopped, which must be by a limit or a full
// pool and by no other error.
func (g *Guest) FillUp(t testing.TB, file string) {
	t.Helper()
	_, err := g.Run("dd if=/dev/zero bs=64k conv=fsync of=" + file)
	if err == nil || !strings.Contains(err.Error(), "No space left on device") && !strings.Contains(err.Error(), "Disk quota exceeded") {
		t.Fatalf("guest filled %s: got %v; want ENOSPC or EDQUOT", file, err)
	}
}
