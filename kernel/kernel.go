package kernel

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Options say where kernels live and where agents are found.
type Options struct {
	Dir string // holds a directory for each kernel; made if absent
	// Agent finds the static agent of an architecture, as Go names it.
	Agent func(arch string) (path string, err error)
	Log   *slog.Logger // may be nil
}

// Progress tells how far a fetch is: what it does, and bytes of total.
type Progress func(step string, done, total int64)

// Store keeps kernels. Its methods may be called from any goroutine.
type Store struct {
	Options

	building sync.Mutex // of one initramfs at a time
	agents   map[string]agentDigest
	given    map[string]bool // paths of initramfs that were handed out

	mu       sync.RWMutex // guards what follows, and the names that it mirrors
	kernels  map[string]*record
	defaults map[string]string // names, by class
}

// temporary begins the names of what is being made or removed.
const temporary = ".new-"

// Open takes up the kernels below o.Dir, and removes what interrupted work
// left there. What is damaged is logged and left out; it stays where it is
// until a kernel of that name is added or deleted.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		Options: o, agents: map[string]agentDigest{}, given: map[string]bool{},
		kernels: map[string]*record{}, defaults: map[string]string{},
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of kernels: %w", err)
	}
	files, err := os.ReadDir(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("directory of kernels: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(o.Dir, f.Name())
		if strings.HasPrefix(f.Name(), temporary) {
			if err := os.RemoveAll(path); err != nil {
				o.Log.Warn("what a crash left of a kernel could not be removed", "path", path, "error", err)
			}
			continue
		}
		if !f.IsDir() {
			continue
		}
		r, err := load(path)
		if err != nil {
			o.Log.Error("a kernel is damaged and left out", "path", path, "error", err)
			continue
		}
		sweep(path)
		s.kernels[r.Kernel.Name] = r
	}
	if err := s.readDefaults(); err != nil {
		o.Log.Error("which kernels are the default ones is lost", "error", err)
	}
	return s, nil
}

// sweep removes what an interrupted build of an initramfs left in a kernel's
// directory.
func sweep(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, temporary+"*"))
	for _, p := range left {
		os.Remove(p)
	}
}

func (s *Store) readDefaults() error {
	b, err := os.ReadFile(filepath.Join(s.Dir, fileDefaults))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = json.Unmarshal(b, &s.defaults)
	}
	s.settle()
	return err
}

// class is what a kernel can be the default one of.
func class(kind api.Kind, arch string) string { return string(kind) + "/" + arch }

func (r *record) class() string { return class(r.Kernel.Kind, r.Kernel.Arch) }

// settle gives each kind and architecture a default kernel: the newest, where
// there is none. The caller holds s.mu.
func (s *Store) settle() {
	for c, name := range s.defaults {
		if r := s.kernels[name]; r == nil || r.class() != c {
			delete(s.defaults, c)
		}
	}
	newest := slices.SortedFunc(maps.Values(s.kernels), func(a, b *record) int {
		return -cmp.Or(a.Kernel.Created.Compare(b.Kernel.Created), cmp.Compare(a.Kernel.Name, b.Kernel.Name))
	})
	for _, r := range newest {
		if s.defaults[r.class()] == "" {
			s.defaults[r.class()] = r.Kernel.Name
		}
	}
}

func (s *Store) saveDefaults() error {
	b, err := json.MarshalIndent(s.defaults, "", "  ")
	if err != nil {
		return err
	}
	return s.fullDisk(writeFile(filepath.Join(s.Dir, fileDefaults), append(b, '\n')))
}

// shown is a copy of the kernel with what the store knows of it.
func (s *Store) shown(r *record) *api.Kernel {
	k := r.Kernel
	k.Default = s.defaults[r.class()] == k.Name
	return &k
}

// List are the kernels, by kind, architecture and name.
func (s *Store) List() []api.Kernel {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := []api.Kernel{}
	for _, r := range s.kernels {
		list = append(list, *s.shown(r))
	}
	slices.SortFunc(list, func(a, b api.Kernel) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// ByName finds a kernel by its name alone.
func (s *Store) ByName(name string) (*api.Kernel, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.kernels[name]
	if r == nil {
		return nil, notFound(name)
	}
	return s.shown(r), nil
}

// Get finds a kernel for a kind and an architecture, the default one if name
// is empty.
func (s *Store) Get(kind api.Kind, arch, name string) (*api.Kernel, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, err := s.get(kind, arch, name)
	if err != nil {
		return nil, err
	}
	return s.shown(r), nil
}

func (s *Store) get(kind api.Kind, arch, name string) (*record, error) {
	if name == "" {
		if r := s.kernels[s.defaults[class(kind, arch)]]; r != nil {
			return r, nil
		}
		fetch := "cleave kernel fetch debian --kind " + string(kind)
		if arch != runtime.GOARCH {
			fetch += " --arch " + arch
		}
		return nil, api.Errorf(api.CodeNotFound, "there is no kernel for kind %s on %s", kind, arch).WithHint("get one with `%s`", fetch)
	}
	r := s.kernels[name]
	switch {
	case r == nil:
		return nil, notFound(name)
	case r.Kernel.Kind != kind || r.Kernel.Arch != arch:
		return nil, api.Errorf(api.CodeInvalid, "kernel %q is for kind %s on %s, and not for %s on %s", name, r.Kernel.Kind, r.Kernel.Arch, kind, arch).
			WithHint("`cleave kernel list` shows what there is")
	}
	return r, nil
}

func notFound(name string) error {
	return api.Errorf(api.CodeNotFound, "kernel %q not found", name).WithHint("`cleave kernel list` shows what there is")
}

// SetDefault makes a kernel the default one of its kind and architecture.
func (s *Store) SetDefault(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.kernels[name]
	if r == nil {
		return notFound(name)
	}
	old := s.defaults[r.class()]
	s.defaults[r.class()] = name
	err := s.saveDefaults()
	if err != nil {
		s.defaults[r.class()] = old
	}
	return err
}

// Delete removes a kernel. The newest other one of its kind and architecture
// becomes the default one if it was. Guests that run keep the files open that
// they need.
func (s *Store) Delete(name string) error {
	if err := api.ValidateKernelName(name); err != nil {
		return notFound(name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	away, err := os.MkdirTemp(s.Dir, temporary)
	if err != nil {
		return s.fullDisk(err)
	}
	defer os.RemoveAll(away)
	// A damaged kernel, which is not in the list, can be deleted too.
	err = os.Rename(filepath.Join(s.Dir, name), filepath.Join(away, name))
	if errors.Is(err, fs.ErrNotExist) && s.kernels[name] == nil {
		return notFound(name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove kernel %q: %w", name, err)
	}
	delete(s.kernels, name)
	s.settle()
	return errors.Join(syncDir(s.Dir), s.saveDefaults())
}

// publish gives a draft its name. With replace it takes the place of a kernel
// of that name, in one step.
func (s *Store) publish(d *draft, r *record, makeDefault, replace bool) (*api.Kernel, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := r.Kernel.Name
	path := filepath.Join(s.Dir, name)
	if have := s.kernels[name]; have != nil {
		switch {
		case have.Digest == r.Digest && have.class() == r.class():
			return s.appoint(have, makeDefault)
		case !replace || have.class() != r.class():
			return nil, api.Errorf(api.CodeExists, "there is another kernel %q, from %s", name, have.Kernel.Source).WithField("name").
				WithHint("give this one another name by --name, or delete that one")
		}
	}
	err := os.Rename(d.dir, path)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		// An older one, or a damaged one, which goes with the draft.
		err = unix.Renameat2(unix.AT_FDCWD, d.dir, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel %q: %w", name, err)
	}
	s.kernels[name] = r
	if err := syncDir(s.Dir); err != nil {
		return nil, err
	}
	return s.appoint(r, makeDefault)
}

// appoint makes r the default kernel if that is wanted or it is the first of
// its kind. The caller holds s.mu.
func (s *Store) appoint(r *record, makeDefault bool) (*api.Kernel, error) {
	if makeDefault {
		s.defaults[r.class()] = r.Kernel.Name
	}
	s.settle()
	return s.shown(r), s.saveDefaults()
}
