package probe

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var procs = []check{
	{"it knows this program", func(string) (string, error) {
		exe, err := os.Readlink("/proc/self/exe")
		if err != nil {
			return "", err
		}
		cmd, err := os.ReadFile("/proc/self/cmdline")
		if err != nil {
			return "", err
		}
		name, _, _ := strings.Cut(string(cmd), "\x00")
		return is(filepath.Base(exe) == filepath.Base(name))
	}},
	{"it knows this process's number", func(string) (string, error) {
		to, err := os.Readlink("/proc/self")
		if err != nil {
			return "", err
		}
		return is(to == strconv.Itoa(os.Getpid()))
	}},
	{"descriptors are listed", func(string) (string, error) {
		p, err := pipe()
		if err != nil {
			return "", err
		}
		defer p.close()
		to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", p[0]))
		if err != nil {
			return "", err
		}
		return is(strings.HasPrefix(to, "pipe:["))
	}},
	{"memory adds up", func(string) (string, error) {
		total, err := field("/proc/meminfo", "MemTotal:")
		if err != nil {
			return "", err
		}
		free, err := field("/proc/meminfo", "MemFree:")
		if err != nil {
			return "", err
		}
		var si unix.Sysinfo_t
		if err := unix.Sysinfo(&si); err != nil {
			return "", err
		}
		return is(free < total && uint64(total)*1024 == si.Totalram*uint64(si.Unit))
	}},
	{"CPUs are as many as can be used", func(string) (string, error) {
		b, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return "", err
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(0, &set); err != nil {
			return "", err
		}
		return is(strings.Count(string(b), "\nprocessor")+btoi(strings.HasPrefix(string(b), "processor")) == set.Count())
	}},
	{"uptime grows", func(string) (string, error) {
		from, err := uptime()
		if err != nil {
			return "", err
		}
		time.Sleep(50 * time.Millisecond)
		to, err := uptime()
		if err != nil {
			return "", err
		}
		return is(to > from)
	}},
	{"the host's name is the kernel's", func(string) (string, error) {
		b, err := os.ReadFile("/proc/sys/kernel/hostname")
		if err != nil {
			return "", err
		}
		name, err := os.Hostname()
		return fmt.Sprint(strings.TrimSpace(string(b)) == name), err
	}},
	{"the root is mounted", func(string) (string, error) {
		b, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[1] == "/" {
				return "yes", nil
			}
		}
		return "no", nil
	}},
	{"interfaces count", func(string) (string, error) {
		b, err := os.ReadFile("/proc/net/dev")
		if err != nil {
			return "", err
		}
		return is(strings.Contains(string(b), "lo:"))
	}},
	{"load is told", func(string) (string, error) {
		b, err := os.ReadFile("/proc/loadavg")
		if err != nil {
			return "", err
		}
		f := strings.Fields(string(b))
		if len(f) != 5 {
			return count(len(f))
		}
		_, err = strconv.ParseFloat(f[0], 64)
		return is(err == nil)
	}},
	{"root is root", func(string) (string, error) { return fmt.Sprint(os.Geteuid()), nil }},
	{"maps show the stack", func(string) (string, error) {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			return "", err
		}
		return is(strings.Contains(string(b), "[stack]"))
	}},
	{"kernel settings can't be changed by accident", func(string) (string, error) {
		f, err := os.OpenFile("/proc/sys/kernel/ostype", os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		return fails(err)
	}},
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// field reads a number from a file of names and numbers.
func field(file, name string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) > 1 && w[0] == name {
			return strconv.ParseInt(w[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}

func uptime() (float64, error) {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.Fields(string(b) + " 0")[0], 64)
}
