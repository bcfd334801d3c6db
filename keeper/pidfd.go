package keeper

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// outcome is how a process ended.
type outcome struct {
	code   int
	signal string
	known  bool
}

func outcomeOf(ws unix.WaitStatus) outcome {
	if ws.Signaled() {
		name := unix.SignalName(ws.Signal())
		if name == "" { // real-time signals have none in the table
			name = "SIG" + strconv.Itoa(int(ws.Signal()))
		}
		return outcome{code: 128 + int(ws.Signal()), signal: name, known: true}
	}
	return outcome{code: ws.ExitStatus(), known: true}
}

// waitChild takes the end of a child that is known to have ended.
func waitChild(pid int) outcome {
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, 0, nil)
		switch err {
		case unix.EINTR:
			continue
		case nil:
			return outcomeOf(ws)
		}
		return outcome{code: -1}
	}
}

// foreignOutcome finds out how a process ended that is no child of ours. As
// long as it is a zombie, /proc says so (state X is a zombie on its last way
// out); once it has been reaped, only the pidfd knows.
func foreignOutcome(pid int, startTime uint64, pidfd int) outcome {
	st, err := readProcStat(pid)
	if err == nil && st.startTime == startTime && (st.state == 'Z' || st.state == 'X') {
		return outcomeOf(unix.WaitStatus(st.exitCode))
	}
	return pidfdOutcome(pidfd)
}

// pidfdOutcome asks the kernel how a process ended that has been reaped by
// another (PIDFD_INFO_EXIT, Linux 6.15).
func pidfdOutcome(pidfd int) outcome {
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return outcome{code: -1}
	}
	return outcomeOf(unix.WaitStatus(info.Exit_code))
}

// alive tells whether the process of a pidfd has not ended yet.
func alive(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0) // a signal ends even a call that doesn't wait
		if err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}

// procStat is the part of /proc/PID/stat (proc_pid_stat(5)) that tells a
// process from an earlier one of the same number, and how it ended while it
// is a zombie.
type procStat struct {
	state     byte
	startTime uint64 // field 22: ticks since boot
	exitCode  int    // field 52: as for waitpid
}

func readProcStat(pid int) (procStat, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, err
	}
	return parseProcStat(text)
}

func parseProcStat(text []byte) (s procStat, err error) {
	// The command's name, field 2, may hold anything, parentheses included.
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return s, fmt.Errorf("no command in %q", text)
	}
	fields := bytes.Fields(text[end+1:])
	if len(fields) < 50 || len(fields[0]) != 1 {
		return s, fmt.Errorf("%d fields after the command in %q", len(fields), text)
	}
	s.state = fields[0][0]
	if s.startTime, err = strconv.ParseUint(string(fields[22-3]), 10, 64); err != nil {
		return s, fmt.Errorf("start time: %w", err)
	}
	if s.exitCode, err = strconv.Atoi(string(fields[52-3])); err != nil {
		return s, fmt.Errorf("exit code: %w", err)
	}
	return s, nil
}

// startedAt is the wall clock's time of a start time, as near as clock ticks
// tell it.
func startedAt(startTime uint64) time.Time {
	const userHZ = 100 // fixed in the kernel's ABI for every architecture that Go runs on
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return time.Time{}
	}
	since := time.Duration(boot.Nano()) - time.Duration(startTime)*(time.Second/userHZ)
	return time.Now().Add(-since).Truncate(time.Second / userHZ)
}

// openPidfd opens a process and makes sure that it is the one that started
// at startTime. The check comes after the opening: from then on the number
// can't be given to another process behind our back.
func openPidfd(pid int, startTime uint64) (int, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, err
	}
	st, err := readProcStat(pid)
	if err == nil && st.startTime != startTime {
		err = fmt.Errorf("pid %d has started at tick %d, not %d: another process has the number", pid, st.startTime, startTime)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
