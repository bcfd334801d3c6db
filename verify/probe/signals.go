package probe

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that ends with it, whatever f changed of it.
// It is never the first thread, whose tables /proc/self shows.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			onOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

var signals = []check{
	{"a child that is killed", func(string) (string, error) { return endBy(unix.SIGKILL) }},
	{"a child that is told to end", func(string) (string, error) { return endBy(unix.SIGTERM) }},
	{"a blocked signal waits", func(string) (string, error) { return pending(unix.SIGUSR1, 2) }},
	{"real-time signals queue", func(string) (string, error) { return pending(34+5, 3) }},
	{"a stopped child shows, and goes on", stopAndGo},
	{"signalling who isn't there", func(string) (string, error) { return fails(unix.Kill(1<<22, 0)) }},
	{"a group gets it together", group},
	{"a process's descriptor tells its end", pidfd},
	{"an orphan goes to another parent", orphan},
}

func sleeper() (*exec.Cmd, error) {
	c := exec.Command(self(), "sleep")
	return c, c.Start()
}

func endBy(sig unix.Signal) (string, error) {
	c, err := sleeper()
	if err != nil {
		return "", err
	}
	if err := c.Process.Signal(sig); err != nil {
		return "", err
	}
	return ended(c)
}

func ended(c *exec.Cmd) (string, error) {
	err := c.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return "", errors.Join(errors.New("it ended well"), err)
	}
	return exit.Sys().(syscall.WaitStatus).Signal().String(), nil
}

// pending sends a signal n times to a thread that blocks it, and counts how
// often it comes.
func pending(sig unix.Signal, n int) (string, error) {
	var got int
	var err error
	onOwnThread(func() { got, err = pendingHere(sig, n) })
	if err != nil {
		return "", err
	}
	return count(got)
}

func pendingHere(sig unix.Signal, n int) (int, error) {
	var set unix.Sigset_t
	set.Val[(sig-1)/64] |= 1 << ((sig - 1) % 64)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil); err != nil {
		return 0, err
	}
	fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for range n {
		if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), sig); err != nil {
			return 0, err
		}
	}
	got := 0
	buf := make([]byte, int(unsafe.Sizeof(unix.SignalfdSiginfo{})))
	for {
		size, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return got, nil
		}
		if err != nil {
			return got, err
		}
		if size == len(buf) && unix.Signal(binary.NativeEndian.Uint32(buf)) == sig {
			got++
		}
	}
}

func stopAndGo(string) (string, error) {
	c, err := sleeper()
	if err != nil {
		return "", err
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	said := ""
	for _, s := range []struct {
		sig  unix.Signal
		wait int
	}{{unix.SIGSTOP, unix.WUNTRACED}, {unix.SIGCONT, unix.WCONTINUED}} {
		if err := c.Process.Signal(s.sig); err != nil {
			return "", err
		}
		var st unix.WaitStatus
		if _, err := unix.Wait4(c.Process.Pid, &st, s.wait, nil); err != nil {
			return "", err
		}
		switch {
		case st.Stopped():
			said += "stopped "
		case st.Continued():
			said += "continued"
		}
	}
	return said, nil
}

func group(string) (string, error) {
	a := exec.Command(self(), "sleep")
	a.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.Start(); err != nil {
		return "", err
	}
	b := exec.Command(self(), "sleep")
	b.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: a.Process.Pid}
	if err := b.Start(); err != nil {
		_ = a.Process.Kill()
		_ = a.Wait()
		return "", err
	}
	err := unix.Kill(-a.Process.Pid, unix.SIGTERM)
	if err != nil {
		_ = a.Process.Kill()
		_ = b.Process.Kill()
	}
	one, _ := ended(a)
	two, _ := ended(b)
	return one + ", " + two, err
}

func pidfd(string) (string, error) {
	c, err := sleeper()
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Wait() }()
	defer func() { _ = c.Process.Kill() }()
	fd, err := unix.PidfdOpen(c.Process.Pid, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return "", err
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int((10 * time.Second).Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return "", err
		}
		return is(n == 1)
	}
}

func orphan(string) (string, error) {
	out, err := exec.Command(self(), "orphan").Output()
	return string(out), err
}

// Orphan starts a child that outlives us.
func Orphan() error {
	c := exec.Command(self(), "parent", strconv.Itoa(os.Getpid()))
	c.Stdout = os.Stdout
	return c.Start()
}

// Parent waits until its parent is another than the one it was born to, as
// happens when that ends, and says so.
func Parent(born int) error {
	for i := 0; os.Getppid() == born && i < 10_000; i++ {
		time.Sleep(time.Millisecond)
	}
	text, _ := is(os.Getppid() != born)
	_, err := os.Stdout.WriteString(text)
	return err
}
