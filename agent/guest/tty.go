package guest

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
)

// openTerminal makes a pseudo terminal of the guest's own devpts. The slave's
// descriptor is for a process; it comes from the master and not by name, so
// that it is the right one whatever is mounted at /dev/pts (since Linux 4.13).
func openTerminal() (master *os.File, slave int, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, errnoError(err, "opening a terminal: /dev/ptmx of the guest")
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	defer func() {
		if err != nil {
			master.Close()
		}
	}()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, 0, errnoError(err, "opening a terminal: unlocking it")
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, 0, errnoError(errno, "opening a terminal: its slave side")
	}
	return master, int(n), nil
}

func resize(master *os.File, size wire.Size) error {
	return withFD(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: size.Cols, Row: size.Rows})
	})
}

// sendEOF types the end of file character where the terminal would take it
// for one. In raw mode there is none.
func sendEOF(master *os.File) error {
	var char byte
	err := withFD(master, func(fd int) error {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && t.Lflag&unix.ICANON != 0 {
			char = t.Cc[unix.VEOF]
		}
		return err
	})
	if err != nil || char == 0 {
		return err
	}
	_, err = master.Write([]byte{char})
	return err
}

// withFD runs f on f's descriptor, without a deadline's or blocking mode's
// part in it.
func withFD(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = conn.Control(func(fd uintptr) { ferr = f(int(fd)) })
	return errors.Join(err, ferr)
}
