package guest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// These requests are about the guest and its entry point as a whole.

func (s *server) signal(q *request) error {
	sig, ok := parseSignal(q.Signal)
	if !ok {
		return api.Errorf(api.CodeInvalid, "signalling the entry point: %q is no signal", q.Signal)
	}
	if s.entry != nil {
		s.entry.child.signal(sig, false)
		return nil
	}
	if sig == systemdHalt && s.powerOff != nil {
		// Which ends a container; a machine that is halted would stay on.
		return s.powerOff(false)
	}
	if err := unix.Kill(1, sig); err != nil {
		return errnoError(err, "signalling the guest's init")
	}
	return nil
}

func (s *server) resize(size wire.Size) error {
	if s.entry != nil {
		if s.entry.stdio == nil || !s.entry.stdio.tty {
			return api.Errorf(api.CodeConflict, "setting the size of the entry point's terminal: it has none")
		}
		if err := resize(s.entry.stdio.stdout, size); err != nil {
			return errnoError(err, "setting the size of the entry point's terminal")
		}
		return nil
	}
	// /dev/console stands for the last of the kernel's consoles.
	active, err := os.ReadFile("/sys/class/tty/console/active")
	names := strings.Fields(string(active))
	if err != nil || len(names) == 0 {
		return api.Errorf(api.CodeConflict, "setting the size of the guest's console: it has none")
	}
	f, err := os.OpenFile(path.Join("/dev", names[len(names)-1]), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		err = resize(f, size)
	}
	if err != nil {
		return errnoError(err, "setting the size of the guest's console")
	}
	return nil
}

// input feeds the entry point until the host ends the stream, which is the end
// of the input, or goes away, which isn't.
func (s *server) input(q *request) {
	e := s.entry
	if e == nil || e.stdio == nil || e.stdio.stdin == nil {
		q.fail(api.Errorf(api.CodeConflict, "the guest's entry point has no input that the agent feeds"))
		return
	}
	q.reply(wire.Reply{Started: true})
	defer q.releaseWhenClosing()()
	var buf buffer
	for {
		p := buf.bytes()
		n, err := q.data[0].Read(p)
		if n > 0 && !e.feed(p[:n]) {
			q.reply(wire.Reply{StdinClosed: true})
			break
		}
		if err == io.EOF && !q.data[0].Session().IsClosed() {
			e.endInput()
			break
		}
		if err != nil {
			return
		}
		buf.used(n)
	}
	q.reply(wire.Reply{Done: true})
}

// feed writes to the entry point's input; false if nobody reads it any more.
func (e *entryPoint) feed(p []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	_, err := e.stdio.stdin.Write(p)
	return err == nil
}

func (e *entryPoint) endInput() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stdio.tty {
		_ = sendEOF(e.stdio.stdin)
		return
	}
	e.closed = true
	e.stdio.stdin.Close()
}

// fare reads how the guest fares from where the kernel has it; what the kernel doesn't have is 0.
func fare() *wire.Metrics {
	m := &wire.Metrics{Tasks: tasks()}
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var kib uint64
			if n, _ := fmt.Sscanf(lines.Text(), "MemTotal: %d kB", &kib); n == 1 {
				m.MemoryTotal = kib << 10
			} else if n, _ := fmt.Sscanf(lines.Text(), "MemAvailable: %d kB", &kib); n == 1 {
				m.MemoryAvailable = kib << 10
				break
			}
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(b), " ")
		m.Load, _ = strconv.ParseFloat(first, 64)
	}
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		m.DiskSize = fs.Blocks * uint64(fs.Bsize)
		m.DiskUsed = (fs.Blocks - fs.Bfree) * uint64(fs.Bsize)
	}
	return m
}

// kernelThread is PF_KTHREAD of the kernel's include/linux/sched.h.
const kernelThread = 0x00200000

// tasks counts the threads that aren't the kernel's.
func tasks() int {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	sum := 0
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		b, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // it has ended
		}
		// The name in parentheses may hold anything (proc(5)). Behind it:
		// state, which is the third field, ..., flags 9th, threads 20th.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(fields) < 18 {
			continue
		}
		flags, _ := strconv.ParseUint(fields[6], 10, 64)
		threads, _ := strconv.Atoi(fields[17])
		if flags&kernelThread == 0 {
			sum += threads
		}
	}
	return sum
}

func (s *server) power(reboot bool) error {
	if s.powerOff == nil {
		return api.Errorf(api.CodeUnsupported, "powering the guest off: it has no init that could shut it down").
			WithHint("signal its entry point")
	}
	return s.powerOff(reboot)
}

// Signals by which systemd shuts down (systemd(1), "Signals").
const (
	systemdHalt     = syscall.Signal(sigRTMin + 3)
	systemdPowerOff = syscall.Signal(sigRTMin + 4)
	systemdReboot   = syscall.Signal(sigRTMin + 5)
)

// shutDown asks the guest's init to. Those other than systemd all bring a
// program for it, which knows how.
func (s *server) shutDown(reboot bool) error {
	name, sig := "poweroff", systemdPowerOff
	if reboot {
		name, sig = "reboot", systemdReboot
	}
	if _, err := os.Lstat("/run/systemd/system"); err == nil { // sd_booted(3)
		if err := unix.Kill(1, sig); err != nil {
			return errnoError(err, "asking systemd to shut down")
		}
		return nil
	}
	cmd, err := prepare([]string{name}, nil, "root", "/", false)
	if err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return errnoError(err, "asking the guest's init to shut down")
	}
	defer null.Close()
	_, err = cmd.start(s.reaper, [3]uintptr{null.Fd(), null.Fd(), null.Fd()}, false)
	return err
}

func setClock(q *request) error {
	ts, err := unix.TimeToTimespec(q.Time)
	if err == nil {
		err = unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	}
	if err != nil {
		return errnoError(err, "setting the guest's clock")
	}
	return nil
}
