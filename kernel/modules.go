package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Modules that a guest needs to come to its root, and those that it is given
// as early because its addresses need them, or the devices behind them are
// there at once. All others it loads from the disk of modules.
var (
	needed = map[api.Kind][]string{
		api.KindVM:  {"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "erofs", "overlay", "ext4", "af_packet"},
		api.KindPVM: {"erofs", "overlay", "ext4", "af_packet"},
	}
	useful = map[api.Kind][]string{
		api.KindVM:  {"virtio_rng", "virtio_balloon", "pvpanic_pci", "pvpanic_mmio", "button", "evdev", "ipv6"},
		api.KindPVM: {"ipv6"},
	}
)

// moduleSet knows a kernel's modules by the files that depmod(8) makes.
type moduleSet struct {
	files   map[string]string   // path of a module by its name
	depends map[string][]string // names of modules, by that of who needs them
	pre     map[string][]string // soft dependencies, as they are written
	builtin map[string]bool
	aliases map[string][]string // of those without wildcards, names of modules
}

// readModules reads modules.dep and its siblings in fsys, which is the
// directory /lib/modules/RELEASE.
func readModules(fsys fs.FS) (*moduleSet, error) {
	m := &moduleSet{
		files: map[string]string{}, depends: map[string][]string{}, pre: map[string][]string{},
		builtin: map[string]bool{}, aliases: map[string][]string{},
	}
	for _, f := range []struct {
		name string
		line func([]string)
	}{
		{"modules.dep", m.depLine},
		{"modules.builtin", func(w []string) { m.builtin[moduleName(w[0])] = true }},
		{"modules.softdep", m.softdepLine},
		{"modules.alias", m.aliasLine},
	} {
		b, err := fs.ReadFile(fsys, f.name)
		if errors.Is(err, fs.ErrNotExist) && f.name != "modules.dep" {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the kernel's %s: %w", f.name, err)
		}
		for line := range strings.Lines(string(b)) {
			if words := strings.Fields(line); len(words) > 0 && words[0][0] != '#' {
				f.line(words)
			}
		}
	}
	return m, nil
}

// depLine reads "kernel/a.ko: kernel/b.ko kernel/c.ko" (modules.dep(5)).
func (m *moduleSet) depLine(words []string) {
	file := strings.TrimSuffix(words[0], ":")
	name := moduleName(file)
	m.files[name] = file
	for _, w := range words[1:] {
		m.depends[name] = append(m.depends[name], moduleName(w))
	}
}

// softdepLine reads "softdep NAME pre: A B post: C" (modprobe.d(5)).
func (m *moduleSet) softdepLine(words []string) {
	if len(words) < 3 || words[0] != "softdep" {
		return
	}
	var info modinfo
	info.add("softdep=" + strings.Join(words[2:], " "))
	name := moduleName(words[1])
	m.pre[name] = append(m.pre[name], info.pre...)
}

// aliasLine reads "alias PATTERN NAME".
func (m *moduleSet) aliasLine(words []string) {
	if len(words) == 3 && words[0] == "alias" && !strings.ContainsAny(words[1], "*?[") {
		a := moduleName(words[1])
		m.aliases[a] = append(m.aliases[a], moduleName(words[2]))
	}
}

// order lists the files of the modules of a kind of machine, and of more, with
// those that they need, in an order in which they can be loaded.
func (m *moduleSet) order(kind api.Kind, more ...string) ([]string, error) {
	var (
		list []string
		done = map[string]bool{}
		load func(name, by string) error
	)
	load = func(name, by string) error {
		if m.builtin[name] || done[name] {
			return nil
		}
		file, ok := m.files[name]
		if !ok {
			return fmt.Errorf("module %s%s is neither built in nor among its modules", name, by)
		}
		done[name] = true // before its dependencies: a circle must not trap us
		by = ", which " + name + " needs,"
		for _, soft := range m.pre[name] {
			if s := m.soft(soft); s != "" {
				if err := load(s, by); err != nil {
					return err
				}
			}
		}
		for _, d := range m.depends[name] {
			if err := load(d, by); err != nil {
				return err
			}
		}
		list = append(list, file)
		return nil
	}
	for _, name := range needed[kind] {
		if err := load(name, ""); err != nil {
			return nil, err
		}
	}
	for _, name := range useful[kind] {
		if m.files[name] != "" {
			if err := load(name, ""); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range more {
		if err := load(moduleName(name), ""); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// soft is the module that a soft dependency by name or alias is best met by,
// empty if there is none to load. Of the implementations of an algorithm,
// which have its name as their alias, the generic one runs on every CPU.
func (m *moduleSet) soft(want string) string {
	name := moduleName(want)
	if m.builtin[name] || m.files[name] != "" {
		return name
	}
	names := m.aliases[name]
	if i := slices.IndexFunc(names, func(n string) bool { return m.builtin[n] }); i >= 0 {
		return ""
	}
	if len(names) == 0 {
		return ""
	}
	generic := func(n string) int {
		if strings.HasSuffix(n, "_generic") {
			return 0
		}
		return 1
	}
	return slices.MinFunc(names, func(a, b string) int { return cmp.Or(generic(a)-generic(b), cmp.Compare(a, b)) })
}
