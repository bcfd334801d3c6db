// Command cleave-vmm runs one virtual machine (package vmm/monitor). Its
// serial port is the terminal that it is started on; SIGTERM presses its power
// button, a second one pulls its plug. With "control" as first argument it
// tells another cleave-vmm what to do.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/monitor"
)

func main() {
	var code int
	var err error
	if len(os.Args) > 1 && os.Args[1] == "control" {
		err = tell(os.Args[2:])
	} else {
		code, err = run(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cleave-vmm:", err)
		code = 1
	}
	os.Exit(code)
}

// run holds a machine until it ends.
func run(args []string) (int, error) {
	c, err := parse(args)
	if err != nil {
		return 0, err
	}
	sys, err := kvm.Open()
	if err != nil {
		return 0, fmt.Errorf("KVM: %w", err)
	}
	defer sys.Close()
	c.Console, c.Input = os.Stdout, os.Stdin
	m, err := monitor.New(sys, *c)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM)
	go func() {
		<-signals
		_ = m.PowerButton(ctx)
		<-signals
		cancel()
	}()
	if term.IsTerminal(0) {
		if old, err := term.MakeRaw(0); err == nil {
			defer func() { _ = term.Restore(0, old) }()
		}
	}
	end, err := m.Run(ctx)
	switch {
	case err != nil:
		return 0, err
	case end.Reason == vmm.TripleFault:
		return 0, errors.New("the guest's processor gave up (triple fault)")
	}
	return end.Code, nil
}
