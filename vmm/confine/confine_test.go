package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside, in the environment, has the test's program be what is shut in.
const inside = "CLEAVE_TEST_CONFINED"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		if err := confined(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// confined does what a monitor does, and tries what it must not.
func confined() error {
	if err := errors.Join(EmptyRoot(), Process()); err != nil {
		return err
	}
	if entries, err := os.ReadDir("/"); err == nil || len(entries) > 0 {
		return fmt.Errorf("it sees %v", entries)
	}
	l := make(chan error)
	for range 20 { // many threads at once, with timers and collections
		go func() {
			runtime.LockOSThread()
			time.Sleep(time.Millisecond)
			if err := Thread(); err != nil {
				l <- err
				return
			}
			b := make([]byte, 1<<20)
			b[5] = 1
			runtime.GC()
			if _, err := unix.MemfdCreate("x", 0); !errors.Is(err, unix.EPERM) {
				l <- fmt.Errorf("a vCPU's thread makes files: %v", err)
				return
			}
			l <- nil
		}()
	}
	for range 20 {
		if err := <-l; err != nil {
			return err
		}
	}
	debug.FreeOSMemory()
	if fd, err := unix.MemfdCreate("x", 0); err != nil || unix.Ftruncate(fd, 4096) != nil {
		return fmt.Errorf("memory: %v", err)
	}
	if _, err := unix.IoctlGetInt(0, unix.TIOCSTI); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("typing for the user: %v", err)
	}
	for what, err := range map[string]error{
		"open":     second(os.Open("/x")),
		"execute":  unix.Exec("/proc/self/exe", nil, nil),
		"connect":  second(net.Dial("tcp", "127.0.0.1:1")),
		"trace":    unix.PtraceAttach(1),
		"mkdir":    os.Mkdir("/x", 0o700),
		"fork":     second(syscall.ForkExec("/x", nil, nil)),
		"run code": second(unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANON|unix.MAP_PRIVATE)),
	} {
		if !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%s: %v", what, err)
		}
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

func TestAConfinedProcessCanDoItsWorkAndNothingElse(t *testing.T) {
	// The same program without cgo, as the monitor is built: with it, Go can't
	// reach all threads.
	program := filepath.Join(t.TempDir(), "confined")
	build := exec.Command("go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c := exec.Command(program)
	c.Env = append(os.Environ(), inside+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := c.CombinedOutput()
	if errors.Is(err, unix.EPERM) && !strings.Contains(string(out), ":") {
		t.Skipf("needs user namespaces: %v", err)
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestFilterRefusesAnotherArchitecture(t *testing.T) {
	for _, list := range [][]call{process, thread} {
		prog, err := compile(list)
		if err != nil {
			t.Fatal(err)
		}
		if len(prog) > unix.BPF_MAXINSNS {
			t.Errorf("%d instructions", len(prog))
		}
		if got := judge(prog, unix.AUDIT_ARCH_I386, unix.SYS_READ); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("32 bits: %#x", got)
		}
		for nr, want := range map[uint32]uint32{
			unix.SYS_READ: unix.SECCOMP_RET_ALLOW, unix.SYS_EXECVE: refused, unix.SYS_READ | 0x40000000: refused,
		} {
			if got := judge(prog, unix.AUDIT_ARCH_X86_64, nr); got != want {
				t.Errorf("system call %d: %#x", nr, got)
			}
		}
	}
}

// judge runs a program as the kernel does, for a call with arguments of zero.
func judge(prog []unix.SockFilter, arch, nr uint32) uint32 {
	acc := uint32(0)
	for pc := 0; ; pc++ {
		switch i := prog[pc]; i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = map[uint32]uint32{offNR: nr, offArch: arch}[i.K]
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= i.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if acc == i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		}
	}
}
