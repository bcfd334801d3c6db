package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/monitor"
	"github.com/cleave-project/cleave/vmm/pages"
)

const pagesUsage = `Usage: cleave-vmm pages SOCKET DIRECTORY...

Brings the memory of a snapshot to each guest that is restored from it with
--pages SOCKET: what a guest waits for first, and the rest behind it. The
directories are the snapshot and those that it is based on, the oldest first.
`

// pagesSpec is who brings the memory of a guest that is restored.
type pagesSpec struct{ Conn, Faults int }

// openPages connects to who brings memory, and opens the state that it goes
// with.
func (s *spec) openPages(socket string, restore list) error {
	switch len(restore) {
	case 0:
		return errors.New("--pages brings the memory of what is to be --restored: say what")
	case 1:
	default:
		return errors.New("with --pages the newest layer alone is needed, whose state is read: the others are for who serves them")
	}
	name := restore[0]
	if !inherited(name) {
		name = filepath.Join(name, "state.json")
	}
	state, err := s.open(name, os.O_RDONLY)
	if err != nil {
		return err
	}
	s.Restore = [][2]int{{state, 0}}
	p := &pagesSpec{}
	if p.Faults, err = s.open(memory.FaultDevice, os.O_RDWR); err != nil {
		return fmt.Errorf("a guest can run before its memory is here only where there is %s (since Linux 6.1): %w", memory.FaultDevice, err)
	}
	f, err := connect(socket)
	if err != nil {
		return fmt.Errorf("--pages %s: %w; is \"cleave-vmm pages\" running?", socket, err)
	}
	p.Conn, s.Pages = s.add(f), p
	return nil
}

// connect is a connection to a unix socket, or an inherited one.
func connect(socket string) (*os.File, error) {
	if inherited(socket) {
		return open(socket, 0)
	}
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.File()
}

// config is who brings memory, with the files.
func (p *pagesSpec) config(s *spec) (*monitor.Pages, error) {
	f, err := s.file(p.Conn)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := &monitor.Pages{}
	if out.Conn, err = net.FileConn(f); err != nil {
		return nil, fmt.Errorf("who brings memory: %w", err)
	}
	out.Faults, err = s.file(p.Faults)
	return out, err
}

// serve brings memory until it is told to end.
func serve(args []string) error {
	if len(args) < 2 {
		fmt.Fprint(os.Stderr, pagesUsage)
		return errors.New("there is no socket, or no snapshot")
	}
	var layers []vmm.Files
	for _, dir := range args[1:] {
		f, err := openSnapshot(dir, os.O_RDONLY)
		if err != nil {
			return err
		}
		layers = append(layers, *f)
	}
	source, err := vmm.OpenMemory(layers...)
	if err != nil {
		return err
	}
	f, err := listen(args[0])
	if err != nil {
		return err
	}
	if !inherited(args[0]) {
		defer os.Remove(args[0])
	}
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	f.Close()
	ctx, cancel := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var guests sync.WaitGroup
	defer guests.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		guests.Go(func() {
			if err := pages.Serve(ctx, c, source); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "cleave-vmm:", err)
			}
		})
	}
}
