package setup

import (
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/engine/internal/handover"
)

// Send sends the specification and the descriptors, which stay the caller's.
func Send(c *net.UnixConn, s *Spec, mounts []*os.File) error { return handover.Send(c, s, mounts) }

// Go tells that the network is there, and what to execute.
func Go(c io.Writer, e *Entry) error { return handover.SendAlone(c, e) }

// Wait reads the guest's answer: nil when the entry point was executed. An
// init takes this process over.
func Wait(c io.Reader, system bool) error { return handover.Wait(c, system) }

// receive reads the specification and its descriptors.
func receive(c *net.UnixConn) (s *Spec, mounts []*os.File, err error) {
	s = &Spec{}
	mounts, err = handover.Receive(c, s, s.check)
	return s, mounts, err
}

// check refuses a specification that doesn't fit the descriptors.
func (s *Spec) check(fds int) error {
	want := 2 + len(s.Mounts)
	if s.Terminal {
		want++
	}
	switch {
	case fds != want:
		return fmt.Errorf("guest specification wants %d mounts, got %d", want, fds)
	case len(s.Seccomp) == 0 || len(s.Seccomp)%8 != 0 || len(s.Seccomp)/8 > unix.BPF_MAXINSNS:
		return fmt.Errorf("guest specification has a system call filter of %d bytes", len(s.Seccomp))
	}
	return nil
}
