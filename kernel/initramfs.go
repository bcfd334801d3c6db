package kernel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	goerofs "github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Boot is what a machine boots an image with. All but Name, Version and Args
// are paths on the host.
type Boot struct {
	Name    string
	Version string // release, as uname -r says
	Image   string // the bootable image, or the program linux.uml
	Initrd  string // initramfs with agent and modules
	Modules string // EROFS of /lib/modules/Version; empty if it has no modules
	Args    string // more for the kernel's command line
}

// layout is the version of what an initramfs looks like: an older one is
// built anew.
const layout = "3"

// Boot finds a kernel as Get does, and its initramfs, which is built if it
// isn't there or the agent has changed since; that takes some 100 ms.
func (s *Store) Boot(ctx context.Context, kind api.Kind, arch, name string) (Boot, error) {
	s.mu.RLock()
	r, err := s.get(kind, arch, name)
	s.mu.RUnlock()
	if err != nil {
		return Boot{}, err
	}
	dir := filepath.Join(s.Dir, r.Kernel.Name)
	b := Boot{Name: r.Kernel.Name, Version: r.Kernel.Version, Image: filepath.Join(dir, fileImage)}
	if r.Modules > 0 {
		b.Modules = filepath.Join(dir, fileModules)
	}
	s.building.Lock()
	defer s.building.Unlock()
	if err := ctx.Err(); err != nil {
		return Boot{}, err
	}
	if b.Initrd, err = s.initramfs(dir, r); err != nil {
		return Boot{}, err
	}
	return b, nil
}

// agentDigest is the digest of a file as it was at a time.
type agentDigest struct {
	ino   uint64
	size  int64
	mtime time.Time
	sum   []byte
}

// agent finds the agent of an architecture, and its digest.
func (s *Store) agent(arch string) (string, []byte, error) {
	p, err := s.Agent(arch)
	if err != nil {
		return "", nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return "", nil, fmt.Errorf("the agent %s: %w", p, err)
	}
	now := agentDigest{ino: st.Ino, size: st.Size, mtime: time.Unix(st.Mtim.Unix())}
	if d, ok := s.agents[p]; ok && d.ino == now.ino && d.size == now.size && d.mtime.Equal(now.mtime) {
		return p, d.sum, nil
	}
	b, err := os.ReadFile(p)
	if err != nil {
		return "", nil, fmt.Errorf("the agent: %w", err)
	}
	sum := sha256.Sum256(b)
	now.sum = sum[:]
	s.agents[p] = now
	return p, now.sum, nil
}

// initramfs returns the path of a kernel's initramfs. Its name says all that
// it was made from. The caller holds s.building.
func (s *Store) initramfs(dir string, r *record) (string, error) {
	agent, sum, err := s.agent(r.Kernel.Arch)
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%x\n%q\n%q\n", layout, r.Digest, sum, needed[r.Kernel.Kind], useful[r.Kernel.Kind]))
	file := filepath.Join(dir, "initramfs-"+hex.EncodeToString(key[:10])+".cpio")
	if _, err := os.Stat(file); err == nil {
		s.given[file] = true
		return file, nil
	}
	if err := s.buildInitramfs(file, dir, r, agent); err != nil {
		return "", fmt.Errorf("initramfs of kernel %s: %w", r.Kernel.Name, s.fullDisk(err))
	}
	s.given[file] = true
	// Those of earlier agents. What this daemon handed out may not have been
	// opened yet.
	old, _ := filepath.Glob(filepath.Join(dir, "initramfs-*"))
	for _, p := range old {
		if !s.given[p] {
			os.Remove(p)
		}
	}
	return file, nil
}

func (s *Store) buildInitramfs(file, dir string, r *record, agent string) error {
	program, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	if err := checkAgent(agent, program, r.Kernel.Arch); err != nil {
		return err
	}
	var modules []module
	if r.Modules > 0 {
		if modules, err = plan(filepath.Join(dir, fileModules), r); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	w := bufio.NewWriterSize(f, 256<<10)
	err = writeInitramfs(&cpio{w: w}, program, modules)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Chmod(0o644)
	}
	return publish(f, file, err)
}

// writeInitramfs writes the archive. It is not compressed: an emulated boot
// takes the same CPU time with gzip, lz4 or zstd (2.3 to 2.4 s in all), and
// the disk has room for some MB.
func writeInitramfs(c *cpio, agent []byte, modules []module) error {
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "mnt", "modules"} {
		c.add(d, cpioDir, 0, 0, nil)
	}
	c.add("dev/console", cpioChar, 5, 1, nil) // for PID 1's first words
	c.add("init", cpioProg, 0, 0, agent)
	c.modules(modules)
	return c.finish()
}

// modules adds modules, and the order of loading them.
func (c *cpio) modules(modules []module) {
	var order bytes.Buffer
	for _, m := range modules {
		fmt.Fprintln(&order, m.name)
		plain, signature := splitSignature(m.content)
		if signature == nil {
			plain = withoutDebug(plain) // a signature is of all of it
		}
		c.add("modules/"+m.name, cpioFile, 0, 0, plain)
		if signature != nil {
			c.add("modules/"+m.name+".sig", cpioFile, 0, 0, signature)
		}
	}
	c.add("modules/order", cpioFile, 0, 0, order.Bytes())
}

// module is one of an initramfs, plain.
type module struct {
	name    string
	content []byte
}

// plan reads the modules of an initramfs in their order. It fails if one is
// missing that the kernel's kind of machine needs, or one of more.
func plan(file string, r *record, more ...string) ([]module, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fsys, err := goerofs.Open(f)
	if err != nil {
		return nil, damaged(r, err)
	}
	set, err := readModules(fsys)
	if err != nil {
		return nil, damaged(r, err)
	}
	files, err := set.order(r.Kernel.Kind, more...)
	if err != nil {
		return nil, api.Errorf(api.CodeUnsupported, "kernel %s can't boot images as kind %s: %w", r.Kernel.Name, r.Kernel.Kind, err).
			WithHint("use another kernel: `cleave kernel fetch debian --kind %s` gets one that can", r.Kernel.Kind)
	}
	var list []module
	for _, name := range files {
		m, err := fsys.Open(name)
		if err != nil {
			return nil, damaged(r, err)
		}
		content, err := readModule(m)
		m.Close()
		if err != nil {
			return nil, damaged(r, fmt.Errorf("%s: %w", name, err))
		}
		base, _, _ := strings.Cut(path.Base(name), ".")
		list = append(list, module{base + ".ko", content})
	}
	return list, nil
}

func damaged(r *record, err error) error {
	return api.Errorf(api.CodeCorrupt, "the modules of kernel %s are damaged: %w", r.Kernel.Name, err).
		WithHint("delete the kernel and add it again")
}
