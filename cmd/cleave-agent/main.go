// Command cleave-agent is the first process of a guest: it builds the guest's
// wall from inside (package setup), and is executed again behind it as the
// guest's PID 1, or beside the guest's own init. It is started by the keeper,
// with a listening unix socket as descriptor 3.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/machine/jail"
)

// listener is the descriptor of the guest's socket.
const listener = 3

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "cleave-agent:", err)
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	switch {
	case len(args) == 0:
		runtime.LockOSThread()
		return 1, setup.Run(listener)
	case len(args) == 1 && args[0] == setup.ArgServe:
		l, err := listen()
		if err != nil {
			return 1, err
		}
		return 1, guest.Serve(l)
	case len(args) == 2 && args[0] == setup.ArgResume:
		return initialize(args[1])
	case len(args) == 1 && args[0] == jail.Arg:
		runtime.LockOSThread()
		return 1, jail.Main()
	}
	return 2, fmt.Errorf("arguments %q are not known: this program is for cleaved to start", args)
}

// initialize is PID 1 of an application guest.
func initialize(conn string) (int, error) {
	e, done, err := setup.Resume(conn)
	if err != nil {
		return 1, err
	}
	l, err := listen()
	if err != nil {
		done(err)
		return 1, err
	}
	return guest.Init(guest.Process(e.Process), l, done), nil
}

// listen takes over the guest's socket.
func listen() (net.Listener, error) {
	// Executed by descriptor, the program would have a number for a name in
	// lists of processes.
	_ = os.WriteFile("/proc/self/comm", []byte("cleave-agent"), 0)
	f := os.NewFile(listener, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no listening socket: %w", listener, err)
	}
	return l, nil
}
