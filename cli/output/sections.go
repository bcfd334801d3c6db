package output

import (
	"io"
	"strings"
)

// Sections collects an object's description for people: headings with
// aligned name and value pairs below them. Pairs without a value are left
// out, and so are headings without pairs.
type Sections struct {
	p     *Printer
	b     strings.Builder
	head  string
	pairs []pair
}

type pair struct {
	name  string
	value string
	style Style
}

// NewSections begins a description.
func NewSections(p *Printer) *Sections { return &Sections{p: p} }

// Head begins a section.
func (s *Sections) Head(head string) {
	s.flush()
	s.head = head
}

// Pair adds a line.
func (s *Sections) Pair(name, value string) { s.Styled(name, value, Plain) }

// Styled adds a line whose value has a style. Further lines of a value are
// indented below the first.
func (s *Sections) Styled(name, value string, st Style) {
	if value != "" {
		s.pairs = append(s.pairs, pair{name, value, st})
	}
}

// Each adds one line per value, the first with the name.
func (s *Sections) Each(name string, values []string) {
	for i, v := range values {
		if i > 0 {
			name = ""
		}
		s.Pair(name, v)
	}
}

func (s *Sections) flush() {
	defer func() { s.pairs = nil }()
	if len(s.pairs) == 0 {
		return
	}
	if s.head != "" {
		s.b.WriteString("\n" + s.p.Paint(s.head, Strong) + "\n")
	}
	indent := ""
	if s.head != "" {
		indent = "  "
	}
	w := 0
	for _, p := range s.pairs {
		w = max(w, Width(p.name))
	}
	for _, p := range s.pairs {
		s.b.WriteString(indent + p.name + strings.Repeat(" ", w-Width(p.name)+2) + s.p.Paint(Clean(p.value), p.style) + "\n")
	}
}

// Print writes the description.
func (s *Sections) Print() error {
	s.flush()
	_, err := io.WriteString(s.p.W, s.b.String())
	return err
}
