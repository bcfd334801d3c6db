package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/cleave-project/cleave/vmm/confine"
)

// inside is the first argument of the process that is shut in.
const inside = "inside"

// firstID begins the range of user ids of which a jail takes its own, by the
// number of this process, when root starts it: above those that systems and
// containers commonly have.
const firstID = 0x60000000

// jailed runs the machine in a process of its own: with namespaces that have
// nothing else in them, an empty root, as a user that is nobody else, without
// privileges, and with no files but those of the spec.
func jailed(s *spec) (int, error) {
	arg, err := json.Marshal(s)
	if err != nil {
		return 0, err
	}
	c := exec.Command("/proc/self/exe", inside, string(arg))
	c.Args[0] = os.Args[0]
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = []string{}
	c.ExtraFiles = s.files
	user, group := os.Getuid(), os.Getgid()
	if user == 0 {
		user = firstID + os.Getpid()
		group = user
	}
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP,
		UidMappings: []syscall.SysProcIDMap{{HostID: user, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: group, Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if os.Getuid() == 0 {
		c.SysProcAttr.Credential = &syscall.Credential{} // root of the namespace, and no group of ours
	}
	// The signal comes when the thread ends that has made the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("make a jail: %w; with --no-jail there is none but a filter of system calls", err)
	}
	for _, f := range s.files {
		f.Close()
	}
	defer raw()()
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGTERM, unix.SIGQUIT) // at the latter it tells what each part of it does
	defer signal.Stop(signals)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case sig := <-signals:
				_ = c.Process.Signal(sig)
			case <-done:
				return
			}
		}
	}()
	err = c.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil // it has said why
	}
	return 0, err
}

// raw passes each key of a terminal on at once, until the returned function is
// called.
func raw() (restore func()) {
	if term.IsTerminal(0) {
		if old, err := term.MakeRaw(0); err == nil {
			return func() { _ = term.Restore(0, old) }
		}
	}
	return func() {}
}

// runInside is the life of the process that is shut in.
func runInside(arg string) (int, error) {
	s := &spec{}
	if err := json.Unmarshal([]byte(arg), s); err != nil {
		return 0, err
	}
	for fd := 3; ; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			break
		}
		s.files = append(s.files, os.NewFile(uintptr(fd), fmt.Sprintf("fd=%d", fd)))
	}
	if err := confine.EmptyRoot(); err != nil {
		return 0, fmt.Errorf("make a jail: %w", err)
	}
	return machine(s)
}
