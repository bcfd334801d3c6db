package kernel

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// index writes the files that depmod(8) makes where a package is installed,
// for modprobe in guests and for us. Those of symbols are left out: modules
// name what they need.
func (t *tree) index(ctx context.Context) error {
	files := t.modules()
	infos := make([]*modinfo, len(files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range files {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := readModule(t.open(name))
			if err == nil {
				infos[i], err = parseModinfo(b)
			}
			if err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	x := &depmod{byName: map[string]int{}, files: files, infos: infos}
	for i, name := range files {
		x.byName[moduleName(name)] = i
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{
		{"modules.dep", x.dep()},
		{"modules.dep.bin", binaryIndex(x.depEntries())},
		{"modules.alias", x.alias()},
		{"modules.alias.bin", binaryIndex(x.aliasEntries())},
		{"modules.softdep", x.softdep()},
		{"modules.devname", x.devname()},
		{"modules.builtin.bin", binaryIndex(t.builtins())},
		{"modules.builtin.alias.bin", binaryIndex(t.builtinAliases())},
	} {
		if t.files[f.name] != nil {
			continue
		}
		if err := t.text(f.name, f.content); err != nil {
			return err
		}
	}
	return nil
}

// depmod is what modules say of themselves.
type depmod struct {
	files  []string
	infos  []*modinfo
	byName map[string]int
}

// needs lists the files that a module needs, in the order of modules.dep:
// what is loaded last comes first.
func (x *depmod) needs(i int) []string {
	var order []string
	done := map[int]bool{i: true}
	var visit func(int)
	visit = func(i int) {
		for _, d := range x.infos[i].depends {
			j, ok := x.byName[d]
			if !ok || done[j] {
				continue // built in, or seen
			}
			done[j] = true
			visit(j)
			order = append(order, x.files[j])
		}
	}
	visit(i)
	slices.Reverse(order)
	return order
}

func (x *depmod) dep() []byte {
	var b bytes.Buffer
	for i, file := range x.files {
		fmt.Fprintln(&b, strings.Join(append([]string{file + ":"}, x.needs(i)...), " "))
	}
	return b.Bytes()
}

func (x *depmod) depEntries() []entry {
	var list []entry
	for i, file := range x.files {
		list = append(list, entry{moduleName(file), strings.Join(append([]string{file + ":"}, x.needs(i)...), " ")})
	}
	return list
}

func (x *depmod) alias() []byte {
	b := bytes.NewBufferString("# Aliases extracted from modules themselves.\n")
	for i, file := range x.files {
		for _, a := range x.infos[i].aliases {
			fmt.Fprintf(b, "alias %s %s\n", a, moduleName(file))
		}
	}
	return b.Bytes()
}

func (x *depmod) aliasEntries() []entry {
	var list []entry
	for i, file := range x.files {
		for _, a := range x.infos[i].aliases {
			list = append(list, entry{aliasKey(a), moduleName(file)})
		}
	}
	return list
}

func (x *depmod) softdep() []byte {
	b := bytes.NewBufferString("# Soft dependencies extracted from modules themselves.\n")
	for i, file := range x.files {
		m := x.infos[i]
		if len(m.pre)+len(m.post) == 0 {
			continue
		}
		fmt.Fprintf(b, "softdep %s", moduleName(file))
		for _, s := range []struct {
			word string
			list []string
		}{{"pre:", m.pre}, {"post:", m.post}} {
			if len(s.list) > 0 {
				fmt.Fprintf(b, " %s %s", s.word, strings.Join(s.list, " "))
			}
		}
		fmt.Fprintln(b)
	}
	return b.Bytes()
}

// devname lists the device nodes that may be made before their modules are
// loaded: `kmod static-nodes` reads it.
func (x *depmod) devname() []byte {
	b := bytes.NewBufferString("# Device nodes to trigger on-demand module loading.\n")
	for i, file := range x.files {
		var name, number string
		for _, a := range x.infos[i].aliases {
			var major, minor int
			if n, ok := strings.CutPrefix(a, "devname:"); ok {
				name = n
			} else if n, _ := fmt.Sscanf(a, "char-major-%d-%d", &major, &minor); n == 2 {
				number = fmt.Sprintf("c%d:%d", major, minor)
			} else if n, _ := fmt.Sscanf(a, "block-major-%d-%d", &major, &minor); n == 2 {
				number = fmt.Sprintf("b%d:%d", major, minor)
			}
		}
		if name != "" && number != "" {
			fmt.Fprintln(b, moduleName(file), name, number)
		}
	}
	return b.Bytes()
}

func (t *tree) builtins() []entry {
	var list []entry
	for line := range bytes.Lines(t.read("modules.builtin")) {
		if file := strings.TrimSpace(string(line)); file != "" {
			list = append(list, entry{moduleName(file), ""})
		}
	}
	return list
}

// builtinAliases reads modules.builtin.modinfo: entries NAME.KEY=VALUE, each
// ended by NUL.
func (t *tree) builtinAliases() []entry {
	var list []entry
	for e := range bytes.SplitSeq(t.read("modules.builtin.modinfo"), []byte{0}) {
		name, rest, _ := strings.Cut(string(e), ".")
		if alias, ok := strings.CutPrefix(rest, "alias="); ok {
			list = append(list, entry{aliasKey(alias), moduleName(name)})
		}
	}
	return list
}

func (t *tree) read(name string) []byte {
	if t.files[name] == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(t.open(name), maxModule))
	if err != nil {
		return nil
	}
	return b
}

// aliasKey writes an alias as modprobe looks it up: with underscores, but
// for what stands in brackets (alias_normalize in kmod's shared/util.c).
func aliasKey(alias string) string {
	b, in := []byte(alias), false
	for i, c := range b {
		switch {
		case c == '[':
			in = true
		case c == ']':
			in = false
		case c == '-' && !in:
			b[i] = '_'
		}
	}
	return string(b)
}

// entry is a key of an index with one of its values.
type entry struct{ key, value string }

// node is one of the trie that a binary index is. Values keep the order in
// which they were added, which is their priority.
type node struct {
	children map[byte]*node
	values   []indexed
}

type indexed struct {
	priority uint32
	value    string
}

// binaryIndex writes the format of kmod's libkmod/libkmod-index.c: a trie of
// big-endian numbers, of which a node is at an offset whose upper bits say
// what it has.
func binaryIndex(entries []entry) []byte {
	root := &node{}
	for i, e := range entries {
		n := root
		if !validKey(e.key) {
			continue
		}
		for _, c := range []byte(e.key) {
			if n.children == nil {
				n.children = map[byte]*node{}
			}
			if n.children[c] == nil {
				n.children[c] = &node{}
			}
			n = n.children[c]
		}
		if !slices.ContainsFunc(n.values, func(v indexed) bool { return v.value == e.value }) {
			n.values = append(n.values, indexed{uint32(i), e.value})
		}
	}
	const magic, version = 0xB007F457, 2<<16 | 1
	b := binary.BigEndian.AppendUint32(nil, magic)
	b = binary.BigEndian.AppendUint32(b, version)
	b = binary.BigEndian.AppendUint32(b, 0)
	b, at := root.append(b)
	binary.BigEndian.PutUint32(b[8:], at)
	return b
}

// validKey tells whether an index can have the key: its characters are below
// 128 (INDEX_CHILDMAX). The length is bounded because of what append takes.
func validKey(key string) bool {
	return len(key) <= 1024 && !strings.ContainsFunc(key, func(r rune) bool { return r >= 0x80 || r == 0 })
}

// append writes n behind its children and returns its offset with flags.
func (n *node) append(b []byte) ([]byte, uint32) {
	const hasPrefix, hasValues, hasChildren = 0x80000000, 0x40000000, 0x20000000
	var prefix []byte
	for len(n.values) == 0 && len(n.children) == 1 {
		for c, child := range n.children {
			prefix, n = append(prefix, c), child
		}
	}
	var first, last byte
	offsets := map[byte]uint32{}
	for i, c := range slices.Sorted(maps.Keys(n.children)) {
		if i == 0 {
			first = c
		}
		last = c
		b, offsets[c] = n.children[c].append(b)
	}
	at := uint32(len(b))
	if len(prefix) > 0 {
		at |= hasPrefix
		b = append(append(b, prefix...), 0)
	}
	if len(n.children) > 0 {
		at |= hasChildren
		b = append(b, first, last)
		for c := int(first); c <= int(last); c++ {
			b = binary.BigEndian.AppendUint32(b, offsets[byte(c)])
		}
	}
	if len(n.values) > 0 {
		at |= hasValues
		b = binary.BigEndian.AppendUint32(b, uint32(len(n.values)))
		values := slices.SortedFunc(slices.Values(n.values), func(a, b indexed) int { return cmp.Compare(a.priority, b.priority) })
		for _, v := range values {
			b = binary.BigEndian.AppendUint32(b, v.priority)
			b = append(append(b, v.value...), 0)
		}
	}
	return b, at
}
