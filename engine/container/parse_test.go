package container

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestParseStatSkipsTheCommand(t *testing.T) {
	rest := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	for _, comm := range []string{"sh", "a b", ") Z 1 2 3", "(((", ""} {
		state, started, err := parseStat("7 (" + comm + ")" + rest)
		if err != nil || state != 'S' || started != 4242 {
			t.Errorf("command %q: state %c, start %d, error %v", comm, state, started, err)
		}
	}
	for _, bad := range []string{"", "7 (sh)", "7 (sh) S 1 2", "no parenthesis"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("7 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20")
	f.Fuzz(func(t *testing.T, s string) { parseStat(s) })
}

func TestParseCPUs(t *testing.T) {
	for in, want := range map[string][]int{"0": {0}, "0-2,5": {0, 1, 2, 5}, "1,1": {1, 1}} {
		if got, err := parseCPUs(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, error %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "a", "2-1", "-1", "1-", "0,", "0-99999", "1 2"} {
		if got, err := parseCPUs(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func FuzzParseCPUs(f *testing.F) {
	f.Add("0-3,7")
	f.Fuzz(func(t *testing.T, s string) {
		cpus, err := parseCPUs(s)
		if err == nil && len(cpus) == 0 {
			t.Error("an empty list")
		}
	})
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]syscall.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "RTMIN": 34, "SIGRTMAX-1": 63, "rtmax": 64,
	} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("%q: %d, error %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "0", "65", "-1", "SIGNO", "RTMIN+31", "RTMIN-1", "RTMAX-31", "RTMIN+", "SIGSIG"} {
		if got, err := parseSignal(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}

func TestSysctlNames(t *testing.T) {
	for in, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding", "kernel.msgmax": "kernel/msgmax",
		"kernel.sem": "kernel/sem", "fs.mqueue.msg_max": "fs/mqueue/msg_max",
	} {
		if err := checkSysctl(in); err != nil || sysctlPath(in) != want {
			t.Errorf("%q: %q, error %v", in, sysctlPath(in), err)
		}
	}
	for _, bad := range []string{"", "kernel.hostname", "vm.swappiness", "net", "net/../vm/swappiness", "net.ipv4..x", "kernel.core_pattern", "/net/x", "net/x/"} {
		if err := checkSysctl(bad); err == nil {
			t.Errorf("%q is allowed", bad)
		}
	}
}

func TestCheckTarget(t *testing.T) {
	for _, good := range []string{"/data", "/dev/shm", "/procs", "/var/../data"} {
		if err := checkTarget(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "/", "data", "/proc", "/proc/1", "/x/../sys/fs", "/dev", "/dev/null", "//dev//tty"} {
		if err := checkTarget(bad); err == nil || !strings.Contains(err.Error(), "mounted") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}
