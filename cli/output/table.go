package output

import (
	"io"
	"strings"
)

// gap separates columns.
const gap = "  "

// narrowest is how far a flexible column may be shortened.
const narrowest = 8

func writeTable[T any](p *Printer, l Listing[T], items []T) error {
	cells := make([][]string, len(items))
	widths := make([]int, len(l.Columns))
	for i, c := range l.Columns {
		widths[i] = Width(c.Head)
	}
	for r, it := range items {
		cells[r] = make([]string, len(l.Columns))
		for i, c := range l.Columns {
			text := Clean(c.Cell(it))
			if text == "" {
				text = "-"
			}
			cells[r][i] = text
			widths[i] = max(widths[i], Width(text))
		}
	}
	fit(p.Width, l, widths)
	var b strings.Builder
	row := func(text func(int) string, style func(int) Style) {
		for i, c := range l.Columns {
			if i > 0 {
				b.WriteString(gap)
			}
			t := Shorten(text(i), widths[i])
			pad := strings.Repeat(" ", widths[i]-Width(t))
			switch painted := p.Paint(t, style(i)); {
			case c.Right:
				b.WriteString(pad + painted)
			case i == len(l.Columns)-1:
				b.WriteString(painted) // no blanks at the end of a line
			default:
				b.WriteString(painted + pad)
			}
		}
		b.WriteByte('\n')
	}
	row(func(i int) string { return l.Columns[i].Head }, func(int) Style { return Strong })
	for r, it := range items {
		row(func(i int) string { return cells[r][i] }, func(i int) Style {
			if l.Columns[i].Style == nil {
				return Plain
			}
			return l.Columns[i].Style(it)
		})
	}
	_, err := io.WriteString(p.W, b.String())
	return err
}

// fit shortens flexible columns, the widest first, until the table is no
// wider than the terminal.
func fit[T any](width int, l Listing[T], widths []int) {
	total := len(gap) * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for width > 0 && total > width {
		widest := -1
		for i, c := range l.Columns {
			if c.Flex && widths[i] > max(narrowest, Width(c.Head)) && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
		total--
	}
}
