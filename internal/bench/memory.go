package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mib is the unit of what is printed.
const mib = 1 << 20

// meminfo is /proc/meminfo in bytes.
func meminfo() (map[string]int64, error) { return keyed("/proc/meminfo") }

// keyed reads lines of the form "key: number kB", in bytes.
func keyed(path string) (map[string]int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := map[string]int64{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		key, rest, ok := strings.Cut(sc.Text(), ":")
		words := strings.Fields(rest)
		if !ok || len(words) != 2 || words[1] != "kB" {
			continue
		}
		if n, err := strconv.ParseInt(words[0], 10, 64); err == nil {
			m[key] = n << 10
		}
	}
	return m, nil
}

// pss is what a process takes, pages that it shares counted by its share.
func pss(pid int) int64 {
	m, err := keyed(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0 // it has ended
	}
	return m["Pss"]
}

// rss is what is resident of a process.
func rss(pid int) int64 {
	m, err := keyed(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	return m["VmRSS"]
}

// sumOf adds up what of says of processes.
func sumOf(pids []int, of func(pid int) int64) (sum int64) {
	for _, pid := range pids {
		sum += of(pid)
	}
	return sum
}

// children of a process.
func children(pid int) []int {
	var list []int
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		for word := range strings.FieldsSeq(readString(t)) {
			if n, err := strconv.Atoi(word); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// ticks of CPU time that a process has used: utime and stime of proc(5).
func ticks(pid int) int64 {
	s := readString(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(s[strings.LastIndex(s, ")")+1:]) // f[0] is field 3
	if len(f) < 13 {
		return 0
	}
	utime, _ := strconv.ParseInt(f[11], 10, 64)
	stime, _ := strconv.ParseInt(f[12], 10, 64)
	return utime + stime
}

// hertz is the unit of ticks, fixed on every architecture that Go runs on.
const hertz = 100
