package keeper

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The FIFOs in a guest's runtime directory.
const (
	fifoStdin  = "stdin"
	fifoStdout = "stdout"
	fifoStderr = "stderr"
)

// stdio is the keeper's side of a guest's standard streams: what it reads
// output from and writes input to, -1 for what is not there.
//
// Output without a terminal comes through FIFOs. The guest's end is open for
// reading and writing, so that it has a reader, itself, also when the keeper
// is dead: no SIGPIPE, the guest only waits once the pipe is full, and what
// it has written stays in the pipe for the next keeper. The price is that
// there never is an end of file: the end of the output is the end of the
// guest with the pipe drained.
//
// Input comes through a FIFO that the guest has open for reading only and the
// keeper for writing only, so that closing it is an end of file for the
// guest. A second writer lies with the holder (see holder.go), so that the
// keeper's death is none.
//
// A terminal's slave side is kept open beside the master, or the master would
// report a hang-up whenever the guest has it closed for a moment.
type stdio struct {
	stdout, stderr int
	stdin          int
	master, slave  int
}

// noStdio has nothing open.
func noStdio() stdio { return stdio{-1, -1, -1, -1, -1} }

func (s *stdio) close() {
	for _, fd := range []*int{&s.stdout, &s.stderr, &s.stdin, &s.master, &s.slave} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// childStdio are descriptors 0 to 2 of a new guest.
type childStdio struct {
	fds    [3]int
	opened []int // those to close once the guest has them
}

func (c *childStdio) add(fd int) {
	c.fds[len(c.opened)] = fd
	c.opened = append(c.opened, fd)
}

func (c *childStdio) close() {
	for _, fd := range c.opened {
		unix.Close(fd)
	}
	c.opened = nil
}

// makeStdio makes the streams of a new guest.
func makeStdio(dir string, owner uint32, terminal, stdin bool) (s stdio, child childStdio, err error) {
	s = noStdio()
	if terminal {
		s.master, s.slave, err = openTerminal(owner)
		child.fds = [3]int{s.slave, s.slave, s.slave}
		return s, child, err
	}
	defer func() {
		if err != nil {
			s.close()
			child.close()
			removeFIFOs(dir)
		}
	}()
	if err = makeStdin(dir, owner, stdin, &s, &child); err != nil {
		return s, child, err
	}
	if s.stdout, err = makeOutput(dir, fifoStdout, owner, &child); err != nil {
		return s, child, err
	}
	if s.stderr, err = makeOutput(dir, fifoStderr, owner, &child); err != nil {
		return s, child, err
	}
	for _, fd := range child.fds {
		// O_NONBLOCK was for the opening only; programs don't expect it.
		if err = unix.SetNonblock(fd, false); err != nil {
			return s, child, err
		}
	}
	return s, child, nil
}

func makeStdin(dir string, owner uint32, wanted bool, s *stdio, child *childStdio) error {
	if !wanted {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: os.DevNull, Err: err}
		}
		child.add(fd)
		return nil
	}
	if err := makeFIFO(filepath.Join(dir, fifoStdin), owner, 0o600); err != nil {
		return err
	}
	// The reader first: there is no opening a writer without one.
	fd, err := openFIFO(dir, fifoStdin, unix.O_RDONLY)
	if err != nil {
		return err
	}
	child.add(fd)
	s.stdin, err = openFIFO(dir, fifoStdin, unix.O_WRONLY)
	return err
}

func makeOutput(dir, name string, owner uint32, child *childStdio) (int, error) {
	if err := makeFIFO(filepath.Join(dir, name), owner, 0o620); err != nil {
		return -1, err
	}
	// Two openings: O_NONBLOCK belongs to an opening, and the guest may set
	// or clear it on its own.
	fd, err := openFIFO(dir, name, unix.O_RDWR)
	if err != nil {
		return -1, err
	}
	child.add(fd)
	return openFIFO(dir, name, unix.O_RDWR)
}

// reopenStdio opens the FIFOs of a guest that an earlier keeper started, and
// says which are missing. A missing stdin is no loss: the guest had none, or
// its end of file was delivered, after which the name is removed.
func reopenStdio(dir string) (s stdio, lost []string) {
	s = noStdio()
	var err error
	if s.stdout, err = openFIFO(dir, fifoStdout, unix.O_RDWR); err != nil {
		lost = append(lost, "stdout")
	}
	if s.stderr, err = openFIFO(dir, fifoStderr, unix.O_RDWR); err != nil {
		lost = append(lost, "stderr")
	}
	s.stdin, _ = openFIFO(dir, fifoStdin, unix.O_WRONLY)
	return s, lost
}

func makeFIFO(path string, owner uint32, mode uint32) error {
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	if err := unix.Mkfifo(path, mode); err != nil {
		return &fs.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if err := os.Lchown(path, int(owner), int(owner)); err != nil {
		return err
	}
	return os.Chmod(path, os.FileMode(mode)) // whatever the umask is
}

func openFIFO(dir, name string, access int) (int, error) {
	path := filepath.Join(dir, name)
	fd, err := unix.Open(path, access|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

func removeFIFOs(dir string) {
	for _, name := range []string{fifoStdin, fifoStdout, fifoStderr} {
		os.Remove(filepath.Join(dir, name))
	}
}

// openTerminal makes a terminal of the host's devpts that belongs to owner.
func openTerminal(owner uint32) (master, slave int, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, &fs.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		unix.Close(master)
		return -1, -1, fmt.Errorf("unlock the terminal: %w", err)
	}
	slave, err = openSlave(master)
	if err == nil {
		if err = unix.Fchown(slave, int(owner), int(owner)); err == nil {
			err = unix.Fchmod(slave, 0o620)
		}
		if err != nil {
			unix.Close(slave)
			err = fmt.Errorf("give the terminal to uid %d: %w", owner, err)
		}
	}
	if err != nil {
		unix.Close(master)
		return -1, -1, err
	}
	// Some size is better than 0 by 0 until somebody attaches.
	_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	return master, slave, nil
}

// openSlave opens the slave side without its path, which may lie in another
// mount namespace (TIOCGPTPEER, ioctl_tty(2)).
func openSlave(master int) (int, error) {
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, fmt.Errorf("open the terminal's slave side: %w", errno)
	}
	return int(slave), nil
}
