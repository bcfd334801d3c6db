package record

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// state is what a disk's file was when nothing wrote to it any more.
type state struct {
	Inode                uint64
	Size                 int64 // of the disk
	Seconds, Nanoseconds int64 // ctime
}

// stateOf is a file's, but for Size.
func stateOf(f *os.File) (state, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return state{}, fmt.Errorf("find out when %s was changed: %w", f.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return state{}, errors.New("it is no file, and nobody can tell whether another wrote to a device")
	}
	if st.Ctim.Nsec == 0 {
		return state{}, errors.New("its file system tells in whole seconds when a file was changed, which is too rough")
	}
	sec, nsec := st.Ctim.Unix()
	return state{Inode: st.Ino, Seconds: sec, Nanoseconds: nsec}, nil
}

// Times of changes are the kernel's clock as of its last tick, of which there
// are 100 a second at least (CONFIG_HZ).
const (
	tick        = 10 * time.Millisecond
	mostSettles = 10
)

// settled is the state of a file such that whoever changes it from now on
// gives it another time: once the clock has gone on.
func settled(f *os.File) (state, error) {
	for range mostSettles {
		s, err := stateOf(f)
		if err != nil {
			return s, err
		}
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
			return s, err
		}
		if time.Unix(s.Seconds, s.Nanoseconds).Before(time.Unix(now.Unix())) {
			return s, nil
		}
		time.Sleep(tick)
	}
	return state{}, fmt.Errorf("the clock is behind the time of the last change of %s", f.Name())
}
