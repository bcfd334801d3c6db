// Command cleave-vmm runs one virtual machine (package vmm/monitor), in a jail
// that it makes. The machine's serial port is the terminal that it is started
// on; SIGTERM presses its power button, a second one pulls its plug. With
// "control" as first argument it tells another cleave-vmm what to do, with
// "pages" it brings memory to guests.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/confine"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/monitor"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "cleave-vmm:", err)
		code = 1
	}
	os.Exit(code)
}

func run(args []string) (int, error) {
	switch {
	case len(args) > 0 && args[0] == "control":
		return 0, tell(args[1:])
	case len(args) > 0 && args[0] == "pages":
		return 0, serve(args[1:])
	case len(args) == 2 && args[0] == inside:
		return runInside(args[1])
	}
	s, jail, err := parse(args)
	if s != nil {
		defer s.close()
	}
	if err != nil {
		return 0, err
	}
	if jail {
		return jailed(s)
	}
	defer raw()()
	return machine(s)
}

// machine holds a machine until it ends.
func machine(s *spec) (int, error) {
	if err := confine.Process(); err != nil {
		return 0, err
	}
	c, err := s.config()
	if err != nil {
		return 0, err
	}
	c.Console, c.Input, c.Thread = os.Stdout, os.Stdin, confine.Thread
	c.Notice = func(err error) { fmt.Fprintln(os.Stderr, "cleave-vmm:", err) }
	if s.Console != 0 {
		f, err := s.file(s.Console)
		if err != nil {
			return 0, err
		}
		c.Console, c.Input = f, f
	}
	dev, err := s.file(s.KVM)
	if err != nil {
		return 0, err
	}
	sys, err := kvm.FromFile(dev)
	if err != nil {
		return 0, err
	}
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
	end, err := m.Run(ctx)
	if s.End != 0 && err == nil {
		var f *os.File
		if f, err = s.file(s.End); err == nil {
			_, err = fmt.Fprintln(f, end.Reason)
		}
	}
	switch {
	case err != nil:
		return 0, err
	case end.Reason == vmm.TripleFault:
		return 0, fmt.Errorf("the guest's processor gave up (triple fault): %s", end.Where)
	case end.Reason == vmm.TestExit:
		return end.Code<<1 | 1, nil // as QEMU's isa-debug-exit
	}
	return 0, nil
}
