package main

import (
	"strings"
	"testing"
)

func TestTableHasMediansRatiosAndVerdicts(t *testing.T) {
	r := table{}
	for i, v := range []float64{300, 100, 200} {
		r.add(boot, monitors[0].name, v)
		r.add(boot, monitors[1].name, 2*v)
		r.add(memory, monitors[0].name, float64(9+i))
		r.add(restore, monitors[0].name, 9)
	}
	r.add(phases[0].rate, monitors[0].name, 50)
	r.add(phases[0].rate, monitors[1].name, 100)
	var b strings.Builder
	r.print(&b)
	lines := strings.Split(b.String(), "\n")
	for i, want := range [][]string{
		{"medians of 3"},
		{"200.0 ms", "400.0 ms", "0.50", "<= 0.9", "pass"},
		{"10.0 MiB", "MISSED"},
		{"9.0 ms", "4.5 % of a boot", "pass"},
		{"0.50", ">= 1.0", "MISSED"},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("no %q in %q", w, lines[i])
			}
		}
	}
}
