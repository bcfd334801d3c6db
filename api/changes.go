package api

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Change is one setting that differs between two specs. Values are written as
// users write them, and left out where they are lists of objects without names.
type Change struct {
	Path     string // as in JSON: resources.memory, env.DEBUG, mounts./srv, nics.eth1
	From, To string
}

// String is for people.
func (c Change) String() string {
	if c.From == "" && c.To == "" {
		return c.Path
	}
	return fmt.Sprintf("%s %s -> %s", c.Path, c.From, c.To)
}

// Changes lists what makes s into to, in the order of the fields.
func (s *InstanceSpec) Changes(to *InstanceSpec) []Change {
	before, after := *s, *to
	for _, spec := range []*InstanceSpec{&before, &after} {
		if spec.NICs == nil {
			spec.NICs = []NIC{{}}
		}
	}
	return changes(nil, "", reflect.ValueOf(before), reflect.ValueOf(after))
}

// device is an element of a list that has a name in the guest.
type device interface {
	entry(place int) (name, text string)
}

func (m Mount) entry(int) (name, text string) {
	text = cmp.Or(m.Volume, m.HostPath)
	if m.ReadOnly {
		text += ":ro"
	}
	return m.Target, text
}

func (n NIC) entry(place int) (name, text string) {
	var options []string
	for _, o := range [][2]string{{"ip", n.IPv4}, {"ip6", n.IPv6}, {"mac", n.MAC}} {
		if o[1] != "" {
			options = append(options, o[0]+"="+o[1])
		}
	}
	text = strings.Join([]string{cmp.Or(n.Network, "default"), strings.Join(options, " ")}, ":")
	return cmp.Or(n.Name, fmt.Sprintf("eth%d", place)), strings.TrimSuffix(text, ":")
}

func changes(list []Change, path string, from, to reflect.Value) []Change {
	if from.Kind() == reflect.Struct {
		for i := range from.NumField() {
			name, _, _ := strings.Cut(from.Type().Field(i).Tag.Get("json"), ",")
			list = changes(list, strings.TrimPrefix(path+"."+name, "."), from.Field(i), to.Field(i))
		}
		return list
	}
	if reflect.DeepEqual(from.Interface(), to.Interface()) {
		return list
	}
	if from.Kind() == reflect.Map {
		return changedEntries(list, path, tableTexts(from), tableTexts(to))
	}
	if from.Kind() == reflect.Slice && from.Type().Elem().Implements(reflect.TypeFor[device]()) {
		before, after := deviceTexts(from), deviceTexts(to)
		if _, ordered := from.Interface().([]NIC); ordered && maps.Equal(before, after) && !slices.Equal(deviceNames(from), deviceNames(to)) {
			return append(list, Change{Path: path}) // the first has the default route
		}
		return changedEntries(list, path, before, after)
	}
	c := Change{Path: path}
	if before, ok := settingText(from); ok {
		if after, ok := settingText(to); ok {
			c.From, c.To = before, after
		}
	}
	if c.From == c.To { // such as a list that is null and one that is empty
		c.From, c.To = "", ""
	}
	return append(list, c)
}

// changedEntries compares tables by their entries.
func changedEntries(list []Change, path string, from, to map[string]string) []Change {
	keys := maps.Clone(from)
	maps.Copy(keys, to)
	entry := func(m map[string]string, key string) string {
		if text, ok := m[key]; ok {
			return brief(text)
		}
		return "none"
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		was, before := from[key]
		is, after := to[key]
		if was != is || before != after {
			list = append(list, Change{path + "." + key, entry(from, key), entry(to, key)})
		}
	}
	return list
}

func tableTexts(table reflect.Value) map[string]string {
	texts := map[string]string{}
	for _, k := range table.MapKeys() {
		texts[k.String()] = fmt.Sprint(table.MapIndex(k).Interface())
	}
	return texts
}

func deviceTexts(devices reflect.Value) map[string]string {
	texts := map[string]string{}
	for i := range devices.Len() {
		name, text := devices.Index(i).Interface().(device).entry(i)
		texts[name] = text
	}
	return texts
}

func deviceNames(devices reflect.Value) []string {
	names := make([]string, devices.Len())
	for i := range names {
		names[i], _ = devices.Index(i).Interface().(device).entry(i)
	}
	return names
}

// settingText writes a value, if it is a plain one.
func settingText(v reflect.Value) (string, bool) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return "default", true
		}
		v = v.Elem()
	} else if v.IsZero() && v.Kind() != reflect.Bool {
		return "default", v.Kind() != reflect.Slice || v.Type().Elem().Kind() == reflect.String
	}
	switch x := v.Interface().(type) {
	case Bytes:
		return x.Exact(), true
	case []string:
		return brief(strings.Join(x, " ")), true
	}
	return brief(fmt.Sprint(v.Interface())), v.Kind() != reflect.Struct && v.Kind() != reflect.Slice
}

// brief keeps a value in a line.
func brief(s string) string {
	if s == "" || strings.ContainsAny(s, "\n\t,") {
		s = fmt.Sprintf("%q", s)
	}
	if r := []rune(s); len(r) > mostShown {
		return string(r[:mostShown-3]) + "..."
	}
	return s
}

const mostShown = 40
