package main

import (
	"strings"
	"testing"
	"time"
)

func series(n int, unit time.Duration) (s samples) {
	for i := n; i > 0; i-- {
		s = append(s, time.Duration(i)*unit)
	}
	return s
}

func TestQuantileIsANearestRank(t *testing.T) {
	for _, c := range []struct {
		n    int
		p    float64
		want time.Duration
	}{
		{0, 0.5, 0}, {1, 0.5, 1}, {1, 0.99, 1}, {2, 0.5, 1}, {3, 0.5, 2}, {10, 0.9, 9}, {100, 0.99, 99}, {1000, 0.99, 990}, {10, 0.99, 10},
	} {
		if got := series(c.n, 1).quantile(c.p); got != c.want {
			t.Errorf("quantile %v of %d samples is %d, want %d", c.p, c.n, got, c.want)
		}
	}
}

func TestVerdictGoesByThePeerWhereThereIsOne(t *testing.T) {
	slow := series(3, 20*time.Millisecond) // median 40 ms
	for _, c := range []struct {
		lxd  samples
		want string
	}{
		{nil, "<= 30 ms\tMISSED"},
		{series(3, 100*time.Millisecond), ">= 4x LXD\tpass"},
		{series(3, 70*time.Millisecond), ">= 4x LXD\tMISSED"},
	} {
		if got := (row{cleave: slow, lxd: c.lxd, ratio: 4, about: 30 * time.Millisecond}).verdict(); got != c.want {
			t.Errorf("verdict %q, want %q", got, c.want)
		}
	}
}

func TestTableMarksWhatIsNotInstalled(t *testing.T) {
	var out strings.Builder
	table(&out, "Title", row{what: "work", cleave: series(1, time.Millisecond)})
	if got := out.String(); !strings.Contains(got, "Title") || strings.Count(got, " - ") < 4 {
		t.Errorf("table:\n%s", got)
	}
}
