package validate

import (
	"slices"
	"strings"
	"testing"
)

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

func TestTarget(t *testing.T) {
	for _, good := range []string{"/data", "/dev/shm", "/procs", "/var/../data"} {
		if err := Target(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "/", "data", "/proc", "/proc/1", "/x/../sys/fs", "/dev", "/dev/null", "//dev//tty"} {
		if err := Target(bad); err == nil || !strings.Contains(err.Error(), "mounted") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}
