package uml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// Agent implements machine.Monitor. The stream ends with the monitor, which
// is the other side of both FIFOs; what an earlier daemon didn't read is still
// in them. Only one at a time, of whatever process, has it.
func (*monitor) Agent(ctx context.Context, g *machine.Guest) (io.ReadWriteCloser, error) {
	// Without a writer, or a reader, there's nothing to wait for.
	out, err := os.OpenFile(filepath.Join(g.Dir, agentOut), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open the agent's channel: %w", err)
	}
	in, err := os.OpenFile(filepath.Join(g.Dir, agentIn), os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENXIO) {
		err = api.Errorf(api.CodeConflict, "the guest's monitor has ended")
	}
	var control *os.File
	if err == nil {
		control, err = g.Control()
	}
	if err == nil {
		err = lock(ctx, out)
	}
	if err != nil {
		_ = out.Close()
		for _, f := range []*os.File{in, control} {
			if f != nil {
				_ = f.Close()
			}
		}
		return nil, fmt.Errorf("open the agent's channel: %w", err)
	}
	return &channel{in, out, control}, nil
}

// lock keeps others from reading half of what comes. It ends with f. Nothing
// tells when somebody else has let go, which takes a moment after a session
// has ended.
func lock(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(lockTime); ; {
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) }); err != nil {
			return err
		}
		if failed != unix.EWOULDBLOCK {
			return failed
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return api.Errorf(api.CodeConflict, "another process talks to the agent")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// lockTime is how long the end of a session may take.
const lockTime = 3 * time.Second

// channel is the host's end of a serial line, with the hatch that is on the
// control disk.
type channel struct{ in, out, control *os.File }

var _ link.HatchWriter = (*channel)(nil)

func (c *channel) Read(p []byte) (int, error)  { return c.out.Read(p) }
func (c *channel) Write(p []byte) (int, error) { return c.in.Write(p) }
func (c *channel) Close() error {
	return errors.Join(c.in.Close(), c.out.Close(), c.control.Close())
}

// Hatch implements link.HatchWriter.
func (c *channel) Hatch() io.WriterAt { return io.NewOffsetWriter(c.control, vitals.HatchOffset) }

// Pace implements link.Paced: a terminal holds 4095 bytes, and its driver
// stops listening, for ever, when fewer than 128 are free (n_tty.c,
// TTY_THRESHOLD_THROTTLE).
func (c *channel) Pace() int { return 3 << 10 }
