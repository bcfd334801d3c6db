package confine

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// EnterRoot makes root, a mount in this process's namespace, the process's
// root directory and lets go of the host's tree. pivot_root(".", ".") stacks the old root on the new one without
// needing a directory for it (pivot_root(2)).
func EnterRoot(root *os.File) error {
	old, err := os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer old.Close()
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return fmt.Errorf("enter the guest's root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("make the guest's root the root directory: %w", err)
	}
	if err := unix.Fchdir(int(old.Fd())); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return checkRoot(root)
}

// checkRoot makes sure that nothing is stacked on the root: "/" doesn't
// look at what is mounted on it, but "/proc/.." would end there.
func checkRoot(root *os.File) error {
	var want, got unix.Statx_t
	const mask = unix.STATX_INO | unix.STATX_MNT_ID
	if err := unix.Statx(int(root.Fd()), "", unix.AT_EMPTY_PATH, mask, &want); err != nil {
		return err
	}
	for _, name := range []string{"/", "/proc/..", "/proc/../.."} {
		if err := unix.Statx(unix.AT_FDCWD, name, 0, mask, &got); err != nil {
			return err
		}
		if got.Mnt_id != want.Mnt_id || got.Ino != want.Ino {
			return fmt.Errorf("%s is mount %d in the guest instead of %d", name, got.Mnt_id, want.Mnt_id)
		}
	}
	return nil
}
