// Command cleave-agent is everything of ours that runs for one guest alone. In
// a container it is the first process: it builds the wall from inside
// (package setup), and is executed again behind it as the guest's PID 1, or
// beside the guest's own init. In a machine's initramfs it is /init (package
// boot). Around a machine's monitor it builds the wall (package jail). In a
// system of its own it serves on a port, if its owner installs it there.
//
// But for the last, other programs of ours start it.
package main

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/cleave-project/cleave/agent/guest"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/machine/boot"
	"github.com/cleave-project/cleave/engine/machine/jail"
)

// listener is the descriptor of a container's socket.
const listener = 3

// initName is what the kernel executes in an initramfs.
const initName = "/init"

func main() {
	if os.Getpid() == 1 && os.Args[0] == initName {
		boot.Run()
	}
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
	case len(args) == 1 && args[0] == jail.Arg:
		runtime.LockOSThread()
		return 1, jail.Main()
	case jail.IsAgain(args):
		return 1, jail.Again(os.Args, os.Environ())
	case len(args) == 1 && args[0] == setup.ArgServe:
		l, err := listen()
		if err != nil {
			return 1, err
		}
		return 1, guest.Serve(l)
	case len(args) == 2 && args[0] == setup.ArgResume:
		return initialize(args[1])
	case len(args) == 1 && args[0] == boot.ArgCompanion:
		return 1, boot.Companion()
	case len(args) == 2 && args[0] == boot.ArgServePort:
		return 1, boot.ServePort(args[1])
	}
	return 2, fmt.Errorf("arguments %q are not known; in a system of its own: cleave-agent %s /dev/virtio-ports/org.cleave.agent", args, boot.ArgServePort)
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
