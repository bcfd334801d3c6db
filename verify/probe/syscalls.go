package probe

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var systemCalls = []check{
	{"a system call that doesn't exist", func(string) (string, error) {
		_, _, e := unix.RawSyscall(1<<20, 0, 0, 0)
		return fails(errnoOf(e))
	}},
	{"a closed descriptor", func(string) (string, error) { return fails(unix.Close(1 << 20)) }},
	{"reading to memory that can't be written", readToReadOnly},
	{"capacity of a pipe", func(string) (string, error) {
		p, err := pipe()
		if err != nil {
			return "", err
		}
		defer p.close()
		n, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETPIPE_SZ, 0)
		if err != nil {
			return "", err
		}
		return count(n)
	}},
	{"eventfd adds up", eventfdAdds},
	{"epoll tells an edge once", epollEdge},
	{"timerfd expires", timerfd},
	{"a sealed memfd refuses writes", sealed},
	{"futex on another value", func(string) (string, error) {
		word := uint32(1)
		_, _, e := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&word)), 0, 2, 0, 0, 0)
		return fails(errnoOf(e))
	}},
	{"exit status of a child", func(string) (string, error) {
		err := exec.Command(self(), "exit", "7").Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return "", errors.Join(errors.New("no exit status"), err)
		}
		return count(exit.ExitCode())
	}},
	{"executing what isn't executable", func(dir string) (string, error) {
		name := dir + "/plain"
		if err := os.WriteFile(name, []byte("#!/nowhere\n"), 0o644); err != nil {
			return "", err
		}
		return fails(unix.Exec(name, []string{name}, nil))
	}},
	{"a thread's own descriptors", ownDescriptors},
	{"getrandom fills", func(string) (string, error) {
		b := make([]byte, 256)
		n, err := unix.Getrandom(b, 0)
		if err != nil {
			return "", err
		}
		return count(n)
	}},
	{"file mode creation mask", func(dir string) (string, error) {
		old := unix.Umask(0o027)
		defer unix.Umask(old)
		if err := os.WriteFile(dir+"/f", nil, 0o666); err != nil {
			return "", err
		}
		st, err := os.Stat(dir + "/f")
		if err != nil {
			return "", err
		}
		return st.Mode().String(), nil
	}},
	{"limit of open files holds", filesLimit},
	{"a process's name", func(string) (string, error) {
		if err := os.WriteFile("/proc/self/comm", []byte("a-name-longer-than-it-may-be"), 0); err != nil {
			return "", err
		}
		b, err := os.ReadFile("/proc/self/comm")
		return string(b), err
	}},
}

func errnoOf(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// self is this program's path, as long as its directory isn't moved.
func self() string {
	path, err := os.Executable()
	if err != nil {
		return "/proc/self/exe"
	}
	return path
}

type pipeEnds [2]int

func pipe() (p pipeEnds, err error) {
	err = unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
	return p, err
}

func (p pipeEnds) close() {
	unix.Close(p[0])
	unix.Close(p[1])
}

func readToReadOnly(string) (string, error) {
	m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(m) }()
	p, err := pipe()
	if err != nil {
		return "", err
	}
	defer p.close()
	if _, err := unix.Write(p[1], []byte("x")); err != nil {
		return "", err
	}
	_, err = unix.Read(p[0], m)
	return fails(err)
}

func eventfdAdds(string) (string, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 8)
	for _, n := range []uint64{2, 3} {
		binary.NativeEndian.PutUint64(b, n)
		if _, err := unix.Write(fd, b); err != nil {
			return "", err
		}
	}
	if _, err := unix.Read(fd, b); err != nil {
		return "", err
	}
	return count(int(binary.NativeEndian.Uint64(b)))
}

func epollEdge(string) (string, error) {
	p, err := pipe()
	if err != nil {
		return "", err
	}
	defer p.close()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(ep)
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, p[0], &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
		return "", err
	}
	if _, err := unix.Write(p[1], []byte("x")); err != nil {
		return "", err
	}
	told := 0
	for range 3 {
		n, err := unix.EpollWait(ep, make([]unix.EpollEvent, 4), 0)
		if err != nil {
			return "", err
		}
		told += n
	}
	return count(told)
}

func timerfd(string) (string, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	when := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(time.Millisecond))}
	if err := unix.TimerfdSettime(fd, 0, &when, nil); err != nil {
		return "", err
	}
	b := make([]byte, 8)
	if _, err := unix.Read(fd, b); err != nil {
		return "", err
	}
	return count(int(binary.NativeEndian.Uint64(b)))
}

func sealed(string) (string, error) {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		return "", err
	}
	_, err = unix.Write(fd, []byte("x"))
	return fails(err)
}

// ownDescriptors unshares a table of descriptors and closes one in it.
func ownDescriptors(string) (string, error) {
	p, err := pipe()
	if err != nil {
		return "", err
	}
	defer p.close()
	onOwnThread(func() {
		if err = unix.Unshare(unix.CLONE_FILES); err == nil {
			unix.Close(p[0])
		}
	})
	if err != nil {
		return "", err
	}
	_, err = unix.FcntlInt(uintptr(p[0]), unix.F_GETFD, 0)
	return is(err == nil)
}

func filesLimit(string) (string, error) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		return "", err
	}
	now := unix.Rlimit{Cur: 40, Max: was.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &now, nil); err != nil {
		return "", err
	}
	defer func() { _ = unix.Prlimit(0, unix.RLIMIT_NOFILE, &was, nil) }()
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	for range 50 {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fails(err)
		}
		open = append(open, fd)
	}
	return "no limit", nil
}
