package boot_test

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent"
	"github.com/cleave-project/cleave/agent/link"
	"github.com/cleave-project/cleave/engine/machine/boot"
)

// A terminal stands for the port. It isn't raw until the agent opens it, and
// echoes what the host says before.
func TestServePortAnswersOnALine(t *testing.T) {
	master, slave := newPTY(t)
	ended := make(chan error, 1)
	go func() {
		time.Sleep(50 * time.Millisecond)
		ended <- boot.ServePort(slave)
	}()
	g := &guest{t: t}
	s, err := link.NewSession(g.context(), master)
	if err != nil {
		t.Fatal(err)
	}
	c := g.client(s)
	e, err := c.Exec(g.context(), agent.ExecRequest{Command: []string{"cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]byte, 1<<10) // every byte there is
	for i := range all {
		all[i] = byte(i)
	}
	if _, err := e.Stdin().Write(all); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(all))
	if _, err := io.ReadFull(e.Stdout(), got); err != nil || string(got) != string(all) {
		t.Errorf("something else came back: %v", err)
	}
	c.Close()
	s.Close()
	select {
	case <-ended:
	case <-time.After(hangGuard):
		t.Error("the agent serves a line that is gone")
	}
}

func TestServePortSaysWhatItCannotOpen(t *testing.T) {
	if err := boot.ServePort("/dev/no-such-port"); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}

func newPTY(t *testing.T) (master *os.File, slave string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	_ = raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return master, fmt.Sprintf("/dev/pts/%d", n)
}
