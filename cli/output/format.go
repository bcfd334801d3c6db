package output

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// Format is a way to print.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
	CSV   Format = "csv"
	Name  Format = "name"
)

// Formats lists those of a listing.
var Formats = []string{string(Table), string(JSON), string(YAML), string(CSV), string(Name)}

// Column is one column of a listing.
type Column[T any] struct {
	Head  string         // upper-case heading; its lower case selects the column
	Cell  func(T) string // for people
	Raw   func(T) string // for programs (CSV); Cell if nil
	Style func(T) Style  // colour of the cell; none if nil
	Right bool           // numbers align at their end
	Flex  bool           // may be shortened where the terminal is narrow
	Extra bool           // shown only when asked for
}

// Listing is how a list of T is printed.
type Listing[T any] struct {
	Columns []Column[T]
	Name    func(T) string
}

// Select returns the listing with the columns named in a list such as
// "name,state,ipv4"; all that aren't Extra for an empty one.
func (l Listing[T]) Select(names string) (Listing[T], error) {
	out := Listing[T]{Name: l.Name}
	if names == "" {
		for _, c := range l.Columns {
			if !c.Extra {
				out.Columns = append(out.Columns, c)
			}
		}
		return out, nil
	}
	for name := range strings.SplitSeq(names, ",") {
		found := false
		for _, c := range l.Columns {
			if strings.EqualFold(columnName(c.Head), strings.TrimSpace(name)) {
				out.Columns, found = append(out.Columns, c), true
			}
		}
		if !found {
			return out, api.Errorf(api.CodeInvalid, "there is no column %q", name).WithHint("choose from %s", strings.Join(l.ColumnNames(), ", "))
		}
	}
	return out, nil
}

// ColumnNames are the names that Select takes.
func (l Listing[T]) ColumnNames() []string {
	names := make([]string, len(l.Columns))
	for i, c := range l.Columns {
		names[i] = columnName(c.Head)
	}
	return names
}

func columnName(head string) string { return strings.ToLower(strings.ReplaceAll(head, " ", "-")) }

// List prints items.
func List[T any](p *Printer, f Format, l Listing[T], items []T) error {
	switch f {
	case JSON:
		if items == nil {
			items = []T{}
		}
		return p.JSON(items)
	case YAML:
		if items == nil {
			items = []T{}
		}
		return p.YAML(items)
	case CSV:
		return writeCSV(p.W, l, items)
	case Name:
		var b strings.Builder
		for _, it := range items {
			b.WriteString(l.Name(it) + "\n")
		}
		_, err := io.WriteString(p.W, b.String())
		return err
	}
	return writeTable(p, l, items)
}

func writeCSV[T any](w io.Writer, l Listing[T], items []T) error {
	cw := csv.NewWriter(w)
	_ = cw.Write(l.ColumnNames()) // Error tells
	row := make([]string, len(l.Columns))
	for _, it := range items {
		for i, c := range l.Columns {
			if c.Raw != nil {
				row[i] = c.Raw(it)
			} else {
				row[i] = c.Cell(it)
			}
		}
		_ = cw.Write(row)
	}
	cw.Flush()
	return cw.Error()
}

// JSON prints v indented.
func (p *Printer) JSON(v any) error {
	enc := json.NewEncoder(p.W)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// JSONLine prints v on one line, for streams.
func (p *Printer) JSONLine(v any) error {
	enc := json.NewEncoder(p.W)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// YAML prints v with the names and the order of its JSON form.
func (p *Printer) YAML(v any) error {
	b, err := MarshalYAML(v)
	if err != nil {
		return err
	}
	_, err = p.W.Write(b)
	return err
}
