package output

import (
	"io"
	"os"

	"golang.org/x/term"
)

// Printer is where output goes and what it can show.
type Printer struct {
	W     io.Writer
	Width int  // columns of the terminal; 0 for no terminal
	Color bool // escape sequences may be used
}

// NewPrinter finds out what w can show.
func NewPrinter(w io.Writer) *Printer {
	p := &Printer{W: w}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.Width = 80
	if cols, _, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 {
		p.Width = cols
	}
	// https://no-color.org: set and not empty, whatever its value.
	p.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return p
}

// Style is a colour with a meaning.
type Style int

// The styles.
const (
	Plain Style = iota
	Good
	Busy
	Bad
	Dim
	Strong
)

var sgr = [...]string{Good: "\x1b[32m", Busy: "\x1b[33m", Bad: "\x1b[31m", Dim: "\x1b[2m", Strong: "\x1b[1m"}

// Paint wraps s in the style's colour where colours are shown.
func (p *Printer) Paint(s string, st Style) string {
	if st == Plain || !p.Color || s == "" {
		return s
	}
	return sgr[st] + s + "\x1b[0m"
}
