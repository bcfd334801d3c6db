package main

import (
	"bytes"
	"fmt"
	"html"
	"regexp"
	"strings"
)

// Measures of the picture, in pixels: of a character of the font, and around
// the text.
const (
	cell   = 8.4
	line   = 20
	margin = 22
	title  = 34
)

var colours = map[string]string{"32": "#7ee787", "31": "#ff7b72", "33": "#e3b341"}

// sgr is what sets colours and weights (ECMA-48 §8.3.117).
var sgr = regexp.MustCompile("\x1b\\[([0-9;]*)m")

// picture draws a terminal's screen, as `tmux capture-pane -e -p` prints it.
// The window is dark, so that it looks the same on light and dark pages.
func picture(screen []byte) []byte {
	lines := strings.Split(strings.TrimRight(string(screen), "\n# "), "\n")
	columns := 0
	for _, l := range lines {
		columns = max(columns, len([]rune(sgr.ReplaceAllString(l, ""))))
	}
	width, height := int(float64(columns)*cell)+2*margin, title+len(lines)*line+margin
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace" font-size="14">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, `<rect x="1" y="1" width="%d" height="%d" rx="9" fill="#0d1117" stroke="#6e7681"/>`+"\n", width-2, height-2)
	for i, c := range []string{"#ff5f56", "#ffbd2e", "#27c93f"} {
		fmt.Fprintf(&b, `<circle cx="%d" cy="18" r="5.5" fill="%s"/>`+"\n", margin+i*19, c)
	}
	style := ""
	for i, l := range lines {
		fmt.Fprintf(&b, `<text y="%d" fill="#c9d1d9" xml:space="preserve">`, title+i*line+16)
		column, prompt := 0, strings.HasPrefix(l, "# ")
		for len(l) > 0 {
			at := sgr.FindStringSubmatchIndex(l)
			text := l
			if at != nil {
				text = l[:at[0]]
			}
			if text != "" {
				if prompt {
					style = ` fill="#ffffff" font-weight="bold"`
				}
				// Every piece says where it begins: fonts differ in width.
				fmt.Fprintf(&b, `<tspan x="%.1f" textLength="%.1f"%s>%s</tspan>`, margin+float64(column)*cell, float64(len([]rune(text)))*cell, style, html.EscapeString(text))
				column += len([]rune(text))
			}
			if at == nil {
				break
			}
			style = styled(l[at[2]:at[3]])
			l = l[at[1]:]
		}
		if prompt {
			style = ""
		}
		b.WriteString("</text>\n")
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// styled is what a sequence sets; one that resets anything resets all, which
// is all that our tables use.
func styled(codes string) string {
	for code := range strings.SplitSeq(codes, ";") {
		if c := colours[code]; c != "" {
			return ` fill="` + c + `"`
		}
		if code == "1" {
			return ` fill="#ffffff" font-weight="bold"`
		}
	}
	return ""
}
