package api

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Change is one setting that differs between two specs. Values are written as
// users write them, and left out where they are lists of objects.
type Change struct {
	Path     string // as in JSON: resources.memory, env.DEBUG
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
	return changes(nil, "", reflect.ValueOf(*s), reflect.ValueOf(*to))
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
		return changedEntries(list, path, from, to)
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
func changedEntries(list []Change, path string, from, to reflect.Value) []Change {
	keys := map[string]bool{}
	for _, v := range []reflect.Value{from, to} {
		for _, k := range v.MapKeys() {
			keys[k.String()] = true
		}
	}
	entry := func(m reflect.Value, key string) (any, string) {
		v := m.MapIndex(reflect.ValueOf(key))
		if !v.IsValid() {
			return nil, "none"
		}
		return v.Interface(), brief(fmt.Sprint(v.Interface()))
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		was, before := entry(from, key)
		is, after := entry(to, key)
		if was != is {
			list = append(list, Change{path + "." + key, before, after})
		}
	}
	return list
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
