package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/memory"
	"github.com/cleave-project/cleave/vmm/migrate"
	"github.com/cleave-project/cleave/vmm/monitor"
)

// incomingSpec is where a guest comes to, with the files of its certificates.
type incomingSpec struct {
	Listener         int
	Cert, Key, Roots int // 0 for none
	Peer             string
	Faults           int // 0 where there is no memory.FaultDevice
}

// pemFiles are what a directory of certificates has.
var pemFiles = [3]string{"cert.pem", "key.pem", "ca.pem"}

// network tells of a place whether it is a path or an address.
func network(place string) string {
	if strings.Contains(place, "/") {
		return "unix"
	}
	return "tcp"
}

// openIncoming listens where a guest comes to.
func (s *spec) openIncoming(arg string) error {
	in, dir := &incomingSpec{}, ""
	place, err := options(arg, map[string]func(string) error{"tls": text(&dir), "peer": text(&in.Peer)})
	if err != nil {
		return err
	}
	if network(place) == "tcp" && dir == "" && !inherited(place) {
		return errors.New("over a network a guest comes with certificates alone: tls=DIR")
	}
	if dir != "" {
		for i, to := range []*int{&in.Cert, &in.Key, &in.Roots} {
			if *to, err = s.open(filepath.Join(dir, pemFiles[i]), os.O_RDONLY); err != nil {
				return err
			}
		}
	}
	f, err := listenAt(place)
	if err != nil {
		return err
	}
	if network(place) == "unix" {
		s.sockets = append(s.sockets, place)
	}
	in.Listener = s.add(f)
	if _, err := os.Stat(memory.FaultDevice); err == nil {
		if in.Faults, err = s.open(memory.FaultDevice, os.O_RDWR); err != nil {
			in.Faults = 0 // whoever needs it is told
		}
	}
	s.Incoming = in
	return nil
}

func listenAt(place string) (*os.File, error) {
	if inherited(place) || network(place) == "unix" {
		return listen(place)
	}
	l, err := net.Listen("tcp", place)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

// config is where the guest comes to, with its files.
func (in *incomingSpec) config(s *spec) (*monitor.Incoming, error) {
	f, err := s.file(in.Listener)
	if err != nil {
		return nil, err
	}
	out := &monitor.Incoming{}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("incoming: %w", err)
	}
	f.Close()
	var ok bool
	if out.Listener, ok = l.(migrate.Listener); !ok {
		return nil, errors.New("incoming: neither a TCP socket nor a unix socket")
	}
	if in.Faults != 0 {
		if out.Faults, err = s.file(in.Faults); err != nil {
			return nil, fmt.Errorf("incoming: %w", err)
		}
	}
	if in.Cert == 0 {
		return out, nil
	}
	out.Identity = &migrate.Identity{Peer: in.Peer}
	id := out.Identity
	for _, p := range []struct {
		n  int
		to *[]byte
	}{{in.Cert, &id.Certificate}, {in.Key, &id.Key}, {in.Roots, &id.Roots}} {
		f, err := s.file(p.n)
		if err == nil {
			*p.to, err = io.ReadAll(io.LimitReader(f, 1<<20))
		}
		if err != nil {
			return nil, fmt.Errorf("incoming: %w", err)
		}
		f.Close()
	}
	return out, nil
}

// sendAway is the request migrate.
func sendAway(ctx context.Context, c *control.Client, args []string) error {
	var r control.Migrate
	flags := flag.NewFlagSet("migrate", flag.ContinueOnError)
	dir := flags.String("tls", "", "")
	peer := flags.String("peer", "", "")
	streams := flags.Int("streams", 1, "")
	flags.Func("mirror", "", func(v string) error { r.Mirror = append(r.Mirror, strings.Split(v, ",")...); return nil })
	flags.BoolVar(&r.PostCopy, "post-copy", false, "")
	flags.BoolVar(&r.Resume, "resume", false, "")
	flags.DurationVar(&r.Downtime, "downtime", 0, "")
	flags.BoolVar(&r.NoThrottle, "no-throttle", false, "")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	place := args[0]
	if *dir != "" {
		if *peer == "" {
			host, _, err := net.SplitHostPort(place)
			if err != nil {
				return err
			}
			*peer = host
		}
		r.Identity = &control.Identity{Peer: *peer}
		for i, to := range []*[]byte{&r.Identity.Certificate, &r.Identity.Key, &r.Identity.Roots} {
			var err error
			if *to, err = os.ReadFile(filepath.Join(*dir, pemFiles[i])); err != nil {
				return err
			}
		}
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for range *streams {
		conn, err := (&net.Dialer{}).DialContext(ctx, network(place), place)
		if err != nil {
			return err
		}
		f, err := conn.(interface{ File() (*os.File, error) }).File()
		conn.Close()
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	m, err := c.Migrate(ctx, r, files)
	return show(m, err)
}

// settle is the request settle-migration.
func settle(ctx context.Context, c *control.Client, where string) error {
	switch where {
	case "here", "gone":
		return c.SettleMigration(ctx, control.Settle{Here: where == "here"})
	}
	return fmt.Errorf("the guest is here or gone, not %q", where)
}
