package stack

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/settings"
	"go.yaml.in/yaml/v3"
)

// maxNodes bounds what aliases may grow a file to.
const maxNodes = 100000

// parser reads one file.
type parser struct {
	file  string // for messages
	dir   string // of relative paths
	nodes int
	stack *Stack
}

// Parse reads a stack file. name is its path, for messages and for paths of
// the host that are relative to it.
func Parse(name string, content []byte) (*Stack, error) {
	p := &parser{file: name, dir: filepath.Dir(name), stack: &Stack{Depends: map[string][]string{}}}
	dec := yaml.NewDecoder(bytes.NewReader(content))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, api.Errorf(api.CodeInvalid, "%s is empty", name)
	case err != nil:
		return nil, api.Errorf(api.CodeInvalid, "%s: %w", name, err)
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, api.Errorf(api.CodeInvalid, "%s: more than one document", name)
	}
	if err := p.top(doc.Content[0]); err != nil {
		return nil, err
	}
	return p.stack, p.check(doc.Content[0])
}

// pair is a key of a mapping and its value.
type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// pairs lists a mapping's pairs. Merge keys are resolved, and what a mapping
// says itself goes before them.
func (p *parser) pairs(n *yaml.Node, what string) ([]pair, error) {
	n = resolve(n)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil, nil
	}
	if n.Kind != yaml.MappingNode {
		return nil, lineError(p.file, n.Line, "%s is not a mapping of names to values", what)
	}
	var out []pair
	var merged []*yaml.Node
	for i := 0; i < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), resolve(n.Content[i+1])
		if p.nodes++; p.nodes > maxNodes {
			return nil, lineError(p.file, k.Line, "the file grows beyond %d values", maxNodes)
		}
		switch {
		case k.Tag == "!!merge" && v.Kind == yaml.SequenceNode:
			merged = append(merged, v.Content...)
		case k.Tag == "!!merge":
			merged = append(merged, v)
		case k.Kind != yaml.ScalarNode:
			return nil, lineError(p.file, k.Line, "a key is not a word")
		case slices.ContainsFunc(out, func(o pair) bool { return o.key == k.Value }):
			return nil, lineError(p.file, k.Line, "%q is given twice", k.Value)
		default:
			out = append(out, pair{k.Value, k.Line, v})
		}
	}
	for _, m := range merged {
		more, err := p.pairs(m, "a merged value")
		if err != nil {
			return nil, err
		}
		for _, o := range more {
			if !slices.ContainsFunc(out, func(have pair) bool { return have.key == o.key }) {
				out = append(out, o)
			}
		}
	}
	return out, nil
}

// resolve follows an alias.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

var topKeys = []string{"version", "name", "networks", "volumes", "instances"}

func (p *parser) top(n *yaml.Node) error {
	pairs, err := p.pairs(n, "the file")
	if err != nil {
		return err
	}
	for _, kv := range pairs {
		switch kv.key {
		case "version":
			if kv.value.Value != strconv.Itoa(version) {
				return lineError(p.file, kv.line, "version %q is not known here; this cleave reads version %d", kv.value.Value, version)
			}
		case "name":
			p.stack.Name = kv.value.Value
			err = api.ValidateName("stack", p.stack.Name)
			if err != nil {
				return lineError(p.file, kv.line, "%s", api.AsError(err).Message)
			}
		case "networks":
			err = p.each(kv, "network", p.network)
		case "volumes":
			err = p.each(kv, "volume", p.volume)
		case "instances":
			err = p.each(kv, "instance", p.instance)
		default:
			if !strings.HasPrefix(kv.key, "x-") { // a place for anchors
				return p.unknown(kv, topKeys)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) unknown(kv pair, known []string) error {
	if near := settings.Nearest(kv.key, known); len(near) > 0 {
		return lineError(p.file, kv.line, "there is no key %q; did you mean %s?", kv.key, strings.Join(near, " or "))
	}
	return lineError(p.file, kv.line, "there is no key %q", kv.key)
}

// each reads the named resources of one kind.
func (p *parser) each(kv pair, what string, read func(name string, kv pair) error) error {
	pairs, err := p.pairs(kv.value, kv.key)
	if err != nil {
		return err
	}
	for _, r := range pairs {
		if err := api.ValidateName(what, r.key); err != nil {
			return lineError(p.file, r.line, "%s", api.AsError(err).Message)
		}
		if err := read(r.key, r); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) network(name string, kv pair) error {
	n := api.Network{Meta: api.Meta{Name: name}}
	err := p.fill(kv, settings.Network, &n, nil)
	p.stack.Networks = append(p.stack.Networks, n)
	return err
}

func (p *parser) volume(name string, kv pair) error {
	v := api.Volume{Meta: api.Meta{Name: name}}
	err := p.fill(kv, settings.Volume, &v, nil)
	p.stack.Volumes = append(p.stack.Volumes, v)
	return err
}

func (p *parser) instance(name string, kv pair) error {
	in := api.Instance{Meta: api.Meta{Name: name}}
	err := p.fill(kv, settings.Instance, &in, func(key pair) (bool, error) {
		if key.key != "depends-on" {
			return false, nil
		}
		deps, err := p.texts(key.value)
		p.stack.Depends[name] = deps
		return true, err
	})
	if err == nil && in.Spec.Image == "" {
		err = lineError(p.file, kv.line, "instance %q has no image", name)
	}
	p.stack.Instances = append(p.stack.Instances, in)
	return err
}

// fill reads the settings of one resource into v. special takes the keys
// that are no settings.
func (p *parser) fill(kv pair, table settings.Table, v any, special func(pair) (bool, error)) error {
	patch := &settings.Patch{Table: table, Dir: p.dir}
	if err := p.settings(patch, "", kv, special); err != nil {
		return err
	}
	if err := patch.Into(v); err != nil {
		return lineError(p.file, kv.line, "%w", err)
	}
	return nil
}

// settings reads a mapping of keys, all of which begin with prefix.
func (p *parser) settings(patch *settings.Patch, prefix string, kv pair, special func(pair) (bool, error)) error {
	pairs, err := p.pairs(kv.value, strings.TrimSuffix(cmp.Or(prefix, kv.key), "."))
	if err != nil {
		return err
	}
	for _, k := range pairs {
		if special != nil && prefix == "" {
			if done, err := special(k); err != nil {
				return err
			} else if done {
				continue
			}
		}
		if err := p.setting(patch, prefix+k.key, k); err != nil {
			return err
		}
	}
	return nil
}

// setting reads one key in whatever form its value is written.
func (p *parser) setting(patch *settings.Patch, key string, kv pair) error {
	s, entry, err := patch.Table.Find(key)
	nested := kv.value.Kind == yaml.MappingNode && hasPrefix(patch.Table, key+".") && (err != nil || !s.IsMap())
	switch {
	case nested:
		return p.settings(patch, key+".", kv, nil)
	case err != nil:
		e := api.AsError(err)
		return lineError(p.file, kv.line, "%s", strings.TrimSuffix(e.Message+"; "+e.Hint, "; "))
	case s.IsMap() && entry == "" && kv.value.Kind == yaml.MappingNode:
		return p.entries(patch, s, kv)
	case kv.value.Kind == yaml.SequenceNode && (s.IsList() || s.IsMap()):
		texts, err := p.texts(kv.value)
		if err == nil {
			err = p.wrap(kv.line, patch.Set(s, ""))
		}
		for i := 0; i < len(texts) && err == nil; i++ {
			err = p.wrap(resolve(kv.value.Content[i]).Line, patch.Add(s, texts[i]))
		}
		return err
	case kv.value.Kind == yaml.SequenceNode:
		texts, err := p.texts(kv.value)
		if err != nil {
			return err
		}
		words, err := json.Marshal(texts) // for those that take commands
		if err != nil {
			return err
		}
		return p.wrap(kv.line, patch.Set(s, string(words)))
	}
	text, err := p.text(kv.value, key)
	switch {
	case err != nil:
		return err
	case entry != "":
		return p.wrap(kv.line, patch.SetEntry(s, entry, text))
	}
	return p.wrap(kv.line, patch.Set(s, text))
}

func hasPrefix(t settings.Table, prefix string) bool {
	return slices.ContainsFunc(t.Keys(), func(k string) bool { return strings.HasPrefix(k, prefix) })
}

// entries reads a mapping of names to values, like env.
func (p *parser) entries(patch *settings.Patch, s *settings.Setting, kv pair) error {
	pairs, err := p.pairs(kv.value, kv.key)
	if err != nil {
		return err
	}
	for _, e := range pairs {
		text, err := p.text(e.value, e.key)
		if err != nil {
			return err
		}
		if err := p.wrap(e.line, patch.SetEntry(s, e.key, text)); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) text(n *yaml.Node, key string) (string, error) {
	switch {
	case n.Kind != yaml.ScalarNode:
		return "", lineError(p.file, n.Line, "%s takes one value", key)
	case n.Tag == "!!null":
		return "", lineError(p.file, n.Line, "%s has no value", key)
	}
	return n.Value, nil
}

func (p *parser) texts(n *yaml.Node) ([]string, error) {
	if n = resolve(n); n.Kind != yaml.SequenceNode {
		return nil, lineError(p.file, n.Line, "this must be a list")
	}
	var out []string
	for _, item := range n.Content {
		item = resolve(item)
		if p.nodes++; p.nodes > maxNodes {
			return nil, lineError(p.file, item.Line, "the file grows beyond %d values", maxNodes)
		}
		text, err := p.text(item, "an element")
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
	return out, nil
}

func (p *parser) wrap(line int, err error) error {
	if err == nil {
		return nil
	}
	e := api.AsError(err)
	return lineError(p.file, line, "%s", strings.TrimSuffix(e.Message+"; "+e.Hint, "; "))
}

// check looks at what only the whole file can tell, and marks its own.
func (p *parser) check(n *yaml.Node) error {
	s := p.stack
	if s.Name == "" {
		return lineError(p.file, n.Line, "the stack has no name")
	}
	for i := range s.Instances {
		in := &s.Instances[i]
		for _, d := range s.Depends[in.Name] {
			if !slices.ContainsFunc(s.Instances, func(o api.Instance) bool { return o.Name == d }) {
				return api.Errorf(api.CodeInvalid, "%s: instance %q depends on %q, which is not in the file", p.file, in.Name, d)
			}
		}
		mark(&in.Meta, s.Name)
		if err := in.Spec.Validate(); err != nil {
			return api.Errorf(api.CodeInvalid, "%s: instance %q: %w", p.file, in.Name, err)
		}
	}
	for i := range s.Networks {
		mark(&s.Networks[i].Meta, s.Name)
	}
	for i := range s.Volumes {
		mark(&s.Volumes[i].Meta, s.Name)
	}
	_, err := s.Levels()
	return err
}

func mark(m *api.Meta, name string) {
	if m.Labels == nil {
		m.Labels = map[string]string{}
	}
	m.Labels[Label] = name
}
