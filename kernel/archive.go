package kernel

import (
	"bufio"
	"io"
	"maps"
	"path"
	"path/filepath"
	"slices"
)

// Archive writes an initramfs of executable files, by their paths, for a
// system with a first process of its own.
func Archive(w io.Writer, files map[string][]byte) error {
	return archive(w, files, nil)
}

// Files are a kernel and its modules, without an initramfs of the agent.
func (s *Store) Files(name string) (Boot, error) {
	r, err := s.named(name)
	if err != nil {
		return Boot{}, err
	}
	dir := filepath.Join(s.Dir, r.Kernel.Name)
	b := Boot{Name: r.Kernel.Name, Version: r.Kernel.Version, Image: filepath.Join(dir, fileImage)}
	if r.Modules > 0 {
		b.Modules = filepath.Join(dir, fileModules)
	}
	return b, nil
}

// Archive writes an initramfs of executable files and of the modules that a
// machine of the kernel's kind needs to come to its disks, and of more: in
// /modules, with their order of loading in /modules/order.
func (s *Store) Archive(w io.Writer, name string, files map[string][]byte, more ...string) error {
	r, err := s.named(name)
	if err != nil {
		return err
	}
	var modules []module
	if r.Modules > 0 {
		if modules, err = plan(filepath.Join(s.Dir, r.Kernel.Name, fileModules), r, more...); err != nil {
			return err
		}
	}
	return archive(w, files, modules)
}

func (s *Store) named(name string) (*record, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.kernels[name]; r != nil {
		return r, nil
	}
	return nil, notFound(name)
}

func archive(to io.Writer, files map[string][]byte, modules []module) error {
	w := bufio.NewWriterSize(to, 256<<10)
	c := &cpio{w: w}
	done := map[string]bool{}
	var dir func(name string)
	dir = func(name string) {
		if name == "." || done[name] {
			return
		}
		dir(path.Dir(name))
		done[name] = true
		c.add(name, cpioDir, 0, 0, nil)
	}
	for _, d := range []string{"dev", "modules"} {
		dir(d)
	}
	c.add("dev/console", cpioChar, 5, 1, nil) // for PID 1's first words
	for _, name := range slices.Sorted(maps.Keys(files)) {
		dir(path.Dir(name))
		c.add(name, cpioProg, 0, 0, files[name])
	}
	c.modules(modules)
	if err := c.finish(); err != nil {
		return err
	}
	return w.Flush()
}
