// Command cleave-agent is the first process of a guest: it builds the guest's
// wall from inside (package setup) and then is its PID 1, or makes way for
// the guest's own init and goes on beside it. It is started by the keeper,
// with a listening unix socket as descriptor 3.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/engine/container/setup"
)

// serve is the argument of the agent beside a guest's own init.
const serve = "serve"

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cleave-agent:", err)
	}
	os.Exit(code)
}

func run() (int, error) {
	l, err := listener()
	if err != nil {
		return 1, err
	}
	if len(os.Args) > 1 && os.Args[1] == serve {
		return 1, guest.Serve(l)
	}
	e, err := setup.Run(l)
	if err != nil {
		return 1, err
	}
	if e.System {
		return 1, e.ExecInit([]string{os.Args[0], serve}, l)
	}
	return guest.Init(guest.Process(e.Process), l, e.Report), nil
}

// listener takes over descriptor 3.
func listener() (*net.UnixListener, error) {
	f := os.NewFile(3, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor 3 is no listening socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("descriptor 3 is no unix socket")
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}
