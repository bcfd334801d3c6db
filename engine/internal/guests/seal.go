package guests

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// SealedCopy copies a program to a memfd that nobody can write to any more:
// a guest that gets hold of its agent's executable can read it, and no more
// (CVE-2019-5736).
func SealedCopy(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the agent: %w", err)
	}
	defer src.Close()
	// MFD_EXEC is refused by kernels before 6.3, which take memfds for
	// executable anyway.
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("cleave-agent", flags|unix.MFD_EXEC)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("cleave-agent", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("copy the agent to memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "cleave-agent")
	if _, err = io.Copy(f, src); err == nil {
		if err = f.Chmod(0o555); err == nil {
			_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("copy the agent to memory: %w", err)
	}
	return f, nil
}
