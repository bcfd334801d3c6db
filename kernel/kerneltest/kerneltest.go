// Package kerneltest has a distribution's kernel for tests that boot one. It
// is fetched once on a host, by whichever test comes first; every test process
// has a store of its own with it, since one that builds an initramfs of its
// agent removes those of others.
package kerneltest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/kernel"
)

// cache keeps what was fetched from one run of tests to the next.
const cache = "/var/cache/cleave-test"

// Stock opens a store in dir, which must not exist, with Debian's kernel for
// virtual machines.
func Stock(ctx context.Context, dir string, agent func(arch string) (string, error)) (*kernel.Store, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	kernels := filepath.Join(cache, "kernels")
	s, err := kernel.Open(kernel.Options{Dir: kernels, Agent: agent})
	if err != nil {
		return nil, err
	}
	if _, err := s.Get(api.KindVM, "amd64", ""); err != nil {
		fetch := api.KernelFetch{Kind: api.KindVM, Distribution: "debian"}
		if _, err := s.Fetch(ctx, fetch, func(string, int64, int64) {}); err != nil {
			return nil, err
		}
	}
	if err := share(kernels, dir); err != nil {
		return nil, err
	}
	return kernel.Open(kernel.Options{Dir: dir, Agent: agent})
}

// share links all but what is built from the agent, and copies what can't be
// linked.
func share(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case !d.Type().IsRegular() || strings.HasPrefix(d.Name(), "initramfs-"):
			return nil
		case os.Link(path, target) == nil:
			return nil
		}
		return copyFile(path, target)
	})
}

func copyFile(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
