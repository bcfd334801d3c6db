package settings

import (
	"cmp"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Find returns the setting of a key; of KEY.NAME, the map and the name in
// it. An unknown key's error names those that look like it.
func (t Table) Find(key string) (s *Setting, entry string, err error) {
	for _, s := range t {
		if s.Key == key || slices.Contains(s.Aliases, key) {
			return s, "", nil
		}
	}
	head, entry, dotted := strings.Cut(key, ".")
	if dotted && entry != "" {
		for _, s := range t {
			if s.shape == table && (s.Key == head || slices.Contains(s.Aliases, head)) {
				return s, entry, nil
			}
		}
	}
	e := api.Errorf(api.CodeInvalid, "there is no setting %q", key)
	if s := t.inAPI(key); s != nil {
		return nil, "", e.WithHint("it is the API's word for %s", s.Key)
	}
	if near := Nearest(key, t.Keys()); len(near) > 0 {
		return nil, "", e.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return nil, "", e
}

// inAPI finds the setting that the API calls by the name: the last word of
// its path, or of what it is a part of.
func (t Table) inAPI(name string) *Setting {
	head, _, _ := strings.Cut(name, ".")
	for _, s := range t {
		if word := s.Path[strings.LastIndexByte(s.Path, '.')+1:]; word == head {
			return s
		}
	}
	return nil
}

// KeyOf is how users write the field of a path, such as spec.env.DEBUG or
// spec.mounts./srv; the path itself if they have no word for it.
func (t Table) KeyOf(path string) string {
	for _, s := range t {
		entry, below := strings.CutPrefix(path, s.Path+".")
		switch {
		case s.Path == path:
			return s.Key
		case below && s.shape != single:
			return s.Key + "." + entry
		}
	}
	return path
}

// Keys lists all keys, without aliases.
func (t Table) Keys() []string {
	keys := make([]string, len(t))
	for i, s := range t {
		keys[i] = s.Key
	}
	return keys
}

// Nearest returns at most three of the words that look like word, the
// nearest first.
func Nearest(word string, words []string) []string {
	type match struct {
		word string
		d    int
	}
	var near []match
	for _, w := range words {
		d := distance(word, w)
		// A tail or a head that fits counts as near: "soft", "mem".
		if len(word) > 2 && (strings.HasPrefix(w, word) || strings.HasSuffix(w, word)) {
			d = min(d, 1)
		}
		if d <= 1+len(word)/4 {
			near = append(near, match{w, d})
		}
	}
	slices.SortStableFunc(near, func(a, b match) int { return cmp.Compare(a.d, b.d) })
	var out []string
	for _, m := range near[:min(3, len(near))] {
		out = append(out, m.word)
	}
	return out
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours between two words (optimal string alignment).
func distance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}
