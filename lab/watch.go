package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Limits of a start.
const (
	noProgress = 30 * time.Second
	bootLimit  = 5 * time.Minute
	look       = time.Second
)

// idle is how much of a processor a host uses that has nothing to do: measured
// 0.5 %, where one that boots uses what it gets.
const idle = 0.04

var errHung = errors.New("it hangs")

// watch returns an error when the host ends, or hangs, before ctx does.
// Nothing wakes us when something doesn't happen, so it looks every second.
func (h *Host) watch(ctx context.Context, p *process) error {
	limit := time.NewTimer(bootLimit)
	defer limit.Stop()
	tick := time.NewTicker(look)
	defer tick.Stop()
	m := meter{stall: h.lab.stall, size: h.consoleSize(), cpu: cpuTime(p.cmd.Process.Pid), since: time.Now()}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.done:
			h.ended(p)
			return fmt.Errorf("it ended before its agent answered: %w", errors.Join(p.err, errEnded))
		case <-limit.C:
			return fmt.Errorf("%w: its agent didn't answer in %s", errHung, bootLimit)
		case <-tick.C:
			if m.stalled(time.Now(), h.consoleSize(), cpuTime(p.cmd.Process.Pid)) {
				return fmt.Errorf("%w: it did nothing for %s", errHung, m.stall)
			}
		}
	}
}

var errEnded = errors.New("the emulator is gone")

// meter tells whether there is progress.
type meter struct {
	stall time.Duration
	size  int64 // of the console
	cpu   time.Duration
	since time.Time
}

// stalled takes a look at a time, and tells whether nothing was done for too
// long.
func (m *meter) stalled(now time.Time, size int64, cpu time.Duration) bool {
	past := now.Sub(m.since)
	if size != m.size || (past >= m.stall/3 && float64(cpu-m.cpu) > idle*float64(past)) {
		m.size, m.cpu, m.since = size, cpu, now
		return false
	}
	return past >= m.stall
}

func (h *Host) consoleSize() int64 {
	st, err := os.Stat(h.Console())
	if err != nil {
		return 0
	}
	return st.Size()
}

// cpuTime is how much processor time a process has used (proc(5), stat).
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in parentheses may hold anything. Behind it: state, which is
	// the third field; utime and stime are the 14th and 15th, in ticks of
	// which a second has 100 on every Linux.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
	system, _ := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}
