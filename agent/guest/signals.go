package guest

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The real-time signals as user space counts them: the kernel's begin at 32,
// of which the C library keeps two for its threads (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// parseSignal reads a signal's name, with or without SIG and in either case,
// or its number. Real-time signals are RTMIN, RTMAX, RTMIN+n, RTMAX-n.
func parseSignal(name string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(name); err == nil {
		return syscall.Signal(n), n >= 1 && n <= sigRTMax
	}
	name = strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, true
	}
	n := 0
	var err error
	switch {
	case name == "RTMIN" || name == "RTMAX":
	case strings.HasPrefix(name, "RTMIN+"), strings.HasPrefix(name, "RTMAX-"):
		if n, err = strconv.Atoi(name[6:]); err != nil || n < 0 || n > sigRTMax-sigRTMin {
			return 0, false
		}
	default:
		return 0, false
	}
	if strings.HasPrefix(name, "RTMIN") {
		return syscall.Signal(sigRTMin + n), true
	}
	return syscall.Signal(sigRTMax - n), true
}

// forwarded tells whether PID 1 passes a signal on to the main process. Not
// passed on are those that can't be caught, SIGCHLD (the reaper's), what our
// own runtime sends itself (SIGURG to pre-empt goroutines, SIGPROF, the C
// library's two) or gets for its own mistakes (SIGPIPE, and those that a fault
// raises), and what only says that PID 1 touched a terminal (SIGTTIN, SIGTTOU).
func forwarded(sig syscall.Signal) bool {
	switch sig {
	case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG, unix.SIGPROF, unix.SIGPIPE,
		unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP, unix.SIGSYS,
		unix.SIGTTIN, unix.SIGTTOU, 32, 33:
		return false
	}
	return sig >= 1 && sig <= sigRTMax
}

// forward passes signals on to c until the returned function is called.
func forward(signals <-chan os.Signal, c *child) {
	for {
		select {
		case sig := <-signals:
			if s, ok := sig.(syscall.Signal); ok {
				c.signal(s, false)
			}
		case <-c.done:
			return
		}
	}
}

// catch begins to collect the signals that are forwarded.
func catch() chan os.Signal {
	var list []os.Signal
	for sig := syscall.Signal(1); sig <= sigRTMax; sig++ {
		if forwarded(sig) {
			list = append(list, sig)
		}
	}
	signals := make(chan os.Signal, len(list))
	signal.Notify(signals, list...)
	return signals
}
