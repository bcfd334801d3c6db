package settings

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Patch collects values on their way to the daemon.
type Patch struct {
	// Table is what may be set.
	Table Table
	// Dir is what relative paths of the host are relative to; the working
	// directory if empty.
	Dir  string
	tree map[string]any
}

// Empty tells whether nothing was set.
func (p *Patch) Empty() bool { return len(p.tree) == 0 }

// MarshalJSON gives the merge patch.
func (p *Patch) MarshalJSON() ([]byte, error) { return json.Marshal(p.tree) }

// Into sets the patch's fields in the resource that v points to. Other fields
// stay.
func (p *Patch) Into(v any) error {
	b, err := json.Marshal(p.tree)
	if err != nil || p.Empty() {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	return dec.Decode(v)
}

// put stores v at a path like spec.resources.memory.
func (p *Patch) put(path []string, v any) {
	if p.tree == nil {
		p.tree = map[string]any{}
	}
	at := p.tree
	for _, step := range path[:len(path)-1] {
		next, ok := at[step].(map[string]any)
		if !ok {
			next = map[string]any{}
			at[step] = next
		}
		at = next
	}
	at[path[len(path)-1]] = v
}

func (p *Patch) at(path []string) any {
	var v any = p.tree
	for _, step := range path {
		m, _ := v.(map[string]any)
		v = m[step]
	}
	return v
}

// Set replaces the setting by what the text says: for a list, its elements
// separated by commas; for a map, NAME=VALUE pairs separated by commas.
func (p *Patch) Set(s *Setting, text string) error {
	path := strings.Split(s.Path, ".")
	switch s.shape {
	case list:
		p.put(path, []any{})
	case table:
		p.put(path, map[string]any{})
	default:
		return p.Add(s, text)
	}
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		if err := p.Add(s, part); err != nil {
			return err
		}
	}
	return nil
}

// Add adds one value: to the end of a list, or NAME=VALUE to a map. A single
// setting is replaced.
func (p *Patch) Add(s *Setting, text string) error {
	if s.shape == table {
		name, value, ok := strings.Cut(text, "=")
		if !ok && s.Key == "env" {
			value, ok = os.LookupEnv(name)
		}
		if !ok {
			return api.Errorf(api.CodeInvalid, "%s: %q has no value", s.Key, text).WithHint("write NAME=VALUE")
		}
		return p.SetEntry(s, name, value)
	}
	v, err := p.parse(s, text)
	if err != nil {
		return err
	}
	path := strings.Split(s.Path, ".")
	if s.shape == list {
		have, _ := p.at(path).([]any)
		more, _ := v.([]any)
		v = append(slices.Clip(have), more...)
		if v.([]any) == nil {
			v = []any{}
		}
	}
	p.put(path, v)
	return nil
}

// SetEntry sets one named entry of a map.
func (p *Patch) SetEntry(s *Setting, name, text string) error {
	if name == "" || strings.ContainsAny(name, "=\x00") {
		return api.Errorf(api.CodeInvalid, "%s: %q is not a name", s.Key, name)
	}
	v, err := p.parse(s, text)
	if err != nil {
		return err
	}
	p.put(append(strings.Split(s.Path, "."), name), v)
	return nil
}

// Reset takes a setting (or one entry of a map) back to its default.
func (p *Patch) Reset(s *Setting, entry string) {
	path := strings.Split(s.Path, ".")
	if entry != "" {
		path = append(path, entry)
	}
	p.put(path, nil)
}

func (p *Patch) parse(s *Setting, text string) (any, error) {
	if len(s.Choices) > 0 && !slices.Contains(s.Choices, text) {
		return nil, api.Errorf(api.CodeInvalid, "%s can't be %q", s.Key, text).WithHint("choose from %s", strings.Join(s.Choices, ", "))
	}
	v, err := s.parse(p, text)
	if err != nil {
		e := api.AsError(err)
		return nil, api.Errorf(api.CodeInvalid, "%s: %s", s.Key, e.Message).WithHint("%s", e.Hint)
	}
	return v, nil
}

// Assign takes KEY=VALUE, KEY= (back to the default; an empty entry of a
// map) or KEY- (back to the default, entry removed), as written after set.
func (p *Patch) Assign(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok {
		k, reset := strings.CutSuffix(text, "-")
		if !reset {
			return api.Errorf(api.CodeInvalid, "%q says no value", text).WithHint("write KEY=VALUE, or KEY- for the default")
		}
		s, entry, err := p.Table.Find(k)
		if err == nil {
			p.Reset(s, entry)
		}
		return err
	}
	s, entry, err := p.Table.Find(key)
	switch {
	case err != nil:
		return err
	case entry != "":
		return p.SetEntry(s, entry, value)
	case value == "":
		p.Reset(s, "")
		return nil
	}
	return p.Set(s, value)
}
