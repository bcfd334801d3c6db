package guest

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
)

// stdio is a command's standard streams: ours is the agent's side of them,
// theirs the command's.
type stdio struct {
	stdin  *os.File // nil if nothing is fed; the master of a terminal
	stdout *os.File // the master of a terminal
	stderr *os.File // nil with a terminal
	theirs [3]uintptr
	handed []int // theirs, once the command has them
	tty    bool
}

// newTerminal is a terminal for all three.
func newTerminal(size wire.Size, feed bool, owner account) (*stdio, error) {
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	s := &stdio{stdout: master, handed: []int{slave}, tty: true}
	if feed {
		s.stdin = master
	}
	for i := range s.theirs {
		s.theirs[i] = uintptr(slave)
	}
	if size != (wire.Size{}) {
		err = resize(master, size)
	}
	if err != nil {
		s.started()
		s.hangUp()
		return nil, errnoError(err, "setting the terminal's size")
	}
	own(slave, owner)
	return s, nil
}

// newPipes are three pipes, or /dev/null for an input that isn't fed.
func newPipes(feed bool, owner account) (s *stdio, err error) {
	s = &stdio{}
	defer func() {
		if err != nil {
			s.started()
			s.hangUp()
		}
	}()
	if feed {
		s.stdin, err = s.pipe(0, owner)
	} else {
		err = s.null()
	}
	if err == nil {
		s.stdout, err = s.pipe(1, owner)
	}
	if err == nil {
		s.stderr, err = s.pipe(2, owner)
	}
	return s, err
}

func (s *stdio) null() error {
	fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return errnoError(err, "opening %s of the guest", os.DevNull)
	}
	s.theirs[0] = uintptr(fd)
	s.handed = append(s.handed, fd)
	return nil
}

// pipe makes a pipe whose one end becomes descriptor n of the command. Ours
// doesn't block; theirs does, as a program expects.
func (s *stdio) pipe(n int, owner account) (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, errnoError(err, "making a pipe")
	}
	ours, theirs := p[0], p[1]
	if n == 0 {
		ours, theirs = p[1], p[0]
	}
	own(theirs, owner)
	s.theirs[n] = uintptr(theirs)
	s.handed = append(s.handed, theirs)
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(ours)
		return nil, errnoError(err, "making a pipe")
	}
	return os.NewFile(uintptr(ours), "pipe"), nil
}

// started closes the command's ends.
func (s *stdio) started() {
	for _, fd := range s.handed {
		unix.Close(fd)
	}
	s.handed = nil
}

// hangUp closes our ends, which wakes whoever waits on them: a command finds
// its input at its end and its output broken, one on a terminal gets SIGHUP.
func (s *stdio) hangUp() {
	for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
		if f != nil {
			f.Close() // the terminal's twice, without harm
		}
	}
}

// hangupGrace is how long the output of a terminal may lag behind the end of
// its session. The kernel has hung it up by then, so that reading ends by
// itself, unless the command had given the terminal away.
const hangupGrace = 200 * time.Millisecond

// finish lets the readers of the output come to an end although others may
// still hold it open.
func (s *stdio) finish() {
	deadline := time.Unix(1, 0)
	if s.tty {
		deadline = time.Now().Add(hangupGrace)
	}
	for _, f := range []*os.File{s.stdout, s.stderr} {
		if f != nil {
			_ = f.SetReadDeadline(deadline) // it fails if closed, which ends reading as well
		}
	}
}

// drain calls write with what file holds now, after its deadline.
func drain(file *os.File, buf []byte, write func([]byte) error) error {
	left := 0
	err := withFD(file, func(fd int) (err error) {
		left, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	for err == nil && left > 0 {
		n := 0
		err = withFD(file, func(fd int) (err error) {
			n, err = unix.Read(fd, buf[:min(left, len(buf))])
			return err
		})
		if n <= 0 {
			break
		}
		left -= n
		if err == nil {
			err = write(buf[:n])
		}
	}
	return err
}
