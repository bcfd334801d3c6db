package stack

import (
	"fmt"
	"strings"
)

// context is how many unchanged lines surround a change.
const context = 3

// Line is one line of a diff; Op is '-', '+', ' ', or '@' for headings.
type Line struct {
	Op   byte
	Text string
}

// Unified compares two texts as diff -u does (POSIX XCU diff, unified
// format). It returns nothing for equal texts.
func Unified(fromName, toName, from, to string) []Line {
	if from == to {
		return nil
	}
	a, b := split(from), split(to)
	script := edits(a, b)
	out := []Line{{'@', "--- " + fromName}, {'@', "+++ " + toName}}
	for begin := 0; begin < len(script); {
		// A hunk ends where more than two contexts of equal lines follow.
		first := begin
		for first < len(script) && script[first].Op == ' ' {
			first++
		}
		if first == len(script) {
			break
		}
		end, equal := first, 0
		for i := first; i < len(script) && equal <= 2*context; i++ {
			if equal++; script[i].Op != ' ' {
				end, equal = i+1, 0
			}
		}
		out = append(out, hunk(script, max(first-context, begin), min(end+context, len(script)))...)
		begin = min(end+context, len(script))
	}
	return out
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

func hunk(script []Line, from, to int) []Line {
	count := func(lines []Line, skip byte) (n int) {
		for _, l := range lines {
			if l.Op != skip {
				n++
			}
		}
		return n
	}
	span := func(skip byte) string {
		start, n := count(script[:from], skip), count(script[from:to], skip)
		if n > 0 {
			start++
		}
		return fmt.Sprintf("%d,%d", start, n)
	}
	return append([]Line{{'@', "@@ -" + span('+') + " +" + span('-') + " @@"}}, script[from:to]...)
}

// edits is the shortest list of lines kept, removed and added, by the longest
// common subsequence; the texts are a few hundred lines at most.
func edits(a, b []string) []Line {
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []Line
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, Line{' ', a[i]})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common[i+1][j] >= common[i][j+1]):
			out = append(out, Line{'-', a[i]})
			i++
		default:
			out = append(out, Line{'+', b[j]})
			j++
		}
	}
	return out
}
