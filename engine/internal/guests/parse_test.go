package guests

import (
	"syscall"
	"testing"
)

func TestParseStatSkipsTheCommand(t *testing.T) {
	rest := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	for _, comm := range []string{"sh", "a b", ") Z 1 2 3", "(((", ""} {
		started, err := parseStat("7 (" + comm + ")" + rest)
		if err != nil || started != 4242 {
			t.Errorf("command %q: start %d, error %v", comm, started, err)
		}
	}
	for _, bad := range []string{"", "7 (sh)", "7 (sh) S 1 2", "no parenthesis"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("7 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20")
	f.Fuzz(func(t *testing.T, s string) { parseStat(s) })
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "RTMIN": 34, "SIGRTMAX-1": 63, "rtmax": 64,
	} {
		if got, err := ParseSignal(in); err != nil || got != want {
			t.Errorf("%q: %d, error %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "0", "65", "-1", "SIGNO", "RTMIN+31", "RTMIN-1", "RTMAX-31", "RTMIN+", "SIGSIG"} {
		if got, err := ParseSignal(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}
