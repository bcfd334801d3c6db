// Command cleave-vmm runs one virtual machine (package vmm): its serial port
// is the terminal that it is started on.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/kvm"
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
	flags := flag.NewFlagSet("cleave-vmm", flag.ExitOnError)
	kernel := flags.String("kernel", "", "bzImage, or ELF with an entry for PVH")
	initrd := flags.String("initrd", "", "initramfs")
	command := flags.String("command", "console=ttyS0", "kernel command line")
	memory := flags.String("memory", "512MiB", "size of its memory")
	cpus := flags.Int("cpus", 1, "how many processors it has")
	_ = flags.Parse(args)
	size, err := api.ParseBytes(*memory)
	if err != nil {
		return 0, err
	}
	c := vmm.Config{CPUs: *cpus, Memory: uint64(size), Console: os.Stdout}
	c.Linux.Command = *command
	k, n, err := open(*kernel)
	if err != nil {
		return 0, fmt.Errorf("kernel: %w", err)
	}
	defer k.Close()
	c.Linux.Kernel, c.Linux.Size = k, n
	if *initrd != "" {
		i, n, err := open(*initrd)
		if err != nil {
			return 0, fmt.Errorf("initramfs: %w", err)
		}
		defer i.Close()
		c.Linux.Initrd, c.Linux.InitrdSize = i, n
	}
	return machine(c)
}

func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// machine runs it until it ends. The first SIGTERM presses its power button,
// the second pulls its plug.
func machine(c vmm.Config) (int, error) {
	sys, err := kvm.Open()
	if err != nil {
		return 0, fmt.Errorf("KVM: %w", err)
	}
	defer sys.Close()
	m, err := vmm.New(sys, c)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM)
	go func() {
		<-signals
		_ = m.PowerButton()
		<-signals
		cancel()
	}()
	if term.IsTerminal(0) {
		if old, err := term.MakeRaw(0); err == nil {
			defer func() { _ = term.Restore(0, old) }()
		}
	}
	go func() { _, _ = io.Copy(m.Console(), os.Stdin) }() // ends with the process
	end, err := m.Run(ctx)
	switch {
	case err != nil:
		return 0, err
	case end.Reason == vmm.TripleFault:
		return 0, errors.New("the guest's processor gave up (triple fault)")
	}
	return end.Code, nil
}
