package keeper

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// guestMain is what the test guests do.
func guestMain(what string, args []string) int {
	switch what {
	case "exit":
		code, _ := strconv.Atoi(args[0])
		return code
	case "sleep":
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "lines": // N lines to each of stdout and stderr
		n, _ := strconv.Atoi(args[0])
		w, e := bufio.NewWriterSize(os.Stdout, 64), bufio.NewWriterSize(os.Stderr, 4096)
		for i := range n {
			fmt.Fprintf(w, "out %d\n", i)
			fmt.Fprintf(e, "err %d\n", i)
		}
		w.Flush()
		e.Flush()
	case "cat": // until the end of file
		fmt.Fprintln(os.Stderr, "ready")
		n, err := io.Copy(os.Stdout, os.Stdin)
		fmt.Fprintf(os.Stderr, "eof after %d bytes %v\n", n, err)
		return 3
	case "on-term": // says what is asked for, then exits with it
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM)
		fmt.Println("ready")
		<-c
		fmt.Println(strings.Join(args, " "))
		fmt.Print("no newline at the end")
		return 42
	case "winsize": // prints each size it gets
		c := make(chan os.Signal, 8)
		signal.Notify(c, unix.SIGWINCH)
		for {
			ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
			if err != nil {
				fmt.Println(err)
				return 1
			}
			fmt.Printf("ready %dx%d\n", ws.Col, ws.Row)
			<-c
		}
	case "look":
		look()
	case "background": // leaves a process behind that writes without end
		child := exec.Command("/proc/self/exe")
		child.Args = []string{"guest", "flood"}
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Fprintln(os.Stderr, child.Process.Pid)
		return 5
	case "flood":
		for line := []byte("flood\n"); ; {
			if _, err := os.Stdout.Write(line); err != nil {
				return 1
			}
		}
	case "cgroup":
		text, err := os.ReadFile("/proc/self/cgroup")
		fmt.Printf("%s%v\nready\n", text, err)
		time.Sleep(time.Hour)
	case "connect": // to a socket of the host, as another user
		nc, err := net.Dial("unix", args[0])
		if err == nil {
			_, err = greet(&conn{nc.(*net.UnixConn)})
		}
		if err != nil {
			fmt.Println("refused:", err)
		}
	case "reopen":
		return reopen()
	case "hog": // never reads its input
		fmt.Println("ready")
		time.Sleep(time.Hour)
	}
	return 0
}

// look prints what the guest has inherited.
func look() {
	fmt.Println("args", len(os.Args), "env", strings.Join(os.Environ(), " "))
	fmt.Println("uid", os.Getuid(), "gid", os.Getgid(), "pid", os.Getpid())
	sid, _ := unix.Getsid(0)
	fmt.Println("sid", sid)
	for fd := range 100 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
			cloexec, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if cloexec&unix.FD_CLOEXEC == 0 {
				fmt.Printf("fd %d access %d nonblock %t\n", fd, flags&unix.O_ACCMODE, flags&unix.O_NONBLOCK != 0)
			}
		}
	}
	fmt.Println("cwd", func() string { d, _ := os.Getwd(); return d }())
	fmt.Printf("umask %03o\n", unix.Umask(0))
	// The Go runtime raises its own and gives children what it has found.
	sh := exec.Command("/bin/sh", "-c", "echo soft limit of open files $(ulimit -n)")
	sh.Stdout, sh.Stderr = os.Stdout, os.Stdout
	sh.Run()
}

// reopen has its terminal hung up, and goes on with a new descriptor.
func reopen() int {
	signal.Ignore(unix.SIGHUP)
	name, err := os.Readlink("/proc/self/fd/0")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	if _, err := fmt.Println("never seen"); err == nil {
		return 2
	}
	tty, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return 3
	}
	if _, err := fmt.Fprintln(tty, "after"); err != nil {
		return 4
	}
	return 0
}
