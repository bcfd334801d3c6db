package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/vmm/monitor"
)

// parseMemory is a --memory.
func (s *spec) parseMemory(arg string) error {
	size, err := options(arg, map[string]func(string) error{
		"max": func(v string) error {
			n, err := api.ParseBytes(v)
			s.Max = uint64(n)
			return err
		},
		"hugepages": func(v string) error {
			if v != "2M" && v != "2MiB" {
				return fmt.Errorf("%q is no size of huge pages that can be had: 2M is", v)
			}
			s.Huge = true
			return nil
		},
	})
	if err != nil {
		return err
	}
	n, err := api.ParseBytes(size)
	s.Memory = uint64(n)
	if err == nil && s.Max != 0 && s.Max < s.Memory {
		err = errors.New("it begins with more than its most")
	}
	return err
}

// openPmem is a --pmem, the i-th.
func (s *spec) openPmem(arg string, i int) error {
	p := portSpec{Name: fmt.Sprintf("pmem%d", i)}
	name, err := options(arg, map[string]func(string) error{"name": text(&p.Name)})
	if err == nil {
		p.File, err = s.open(name, os.O_RDONLY)
	}
	s.Pmem = append(s.Pmem, p)
	return err
}

// openVsock is a --vsock. Who is shut in has its connections made by this
// process.
func (s *spec) openVsock(arg string) error {
	v, path := &vsockSpec{}, ""
	_, err := options(","+arg, map[string]func(string) error{
		"cid": func(n string) error {
			cid, err := strconv.ParseUint(n, 10, 32)
			v.CID = uint32(cid)
			return err
		},
		"socket": text(&path),
	})
	switch {
	case err != nil:
		return err
	case path == "":
		return errors.New("it has no socket")
	}
	f, err := listen(path)
	if err != nil {
		return err
	}
	v.Listener = s.add(f)
	s.Vsock = v
	if inherited(path) {
		return nil // which has no name that others could be found by
	}
	s.sockets = append(s.sockets, path)
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	s.dialer, f, err = monitor.NewDialer(path)
	if err != nil {
		return err
	}
	v.Dial = s.add(f)
	return nil
}
