package seccomp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/elastic/go-seccomp-bpf/arch"
)

const (
	eperm  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	enotty = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOTTY)
)

// call is a struct seccomp_data. The interpreter in x/net/bpf reads packets,
// which are big-endian, so the words are written that way.
func call(archID, nr uint32, args ...uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, nr)
	b = binary.BigEndian.AppendUint32(b, archID)
	b = append(b, make([]byte, 8)...)
	for i := range 6 {
		var v uint64
		if i < len(args) {
			v = args[i]
		}
		b = binary.BigEndian.AppendUint32(b, uint32(v))
		b = binary.BigEndian.AppendUint32(b, uint32(v>>32))
	}
	return b
}

func TestFilterDecides(t *testing.T) {
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	nr := func(name string) uint32 { return uint32(info.SyscallNames[name]) }
	id := uint32(info.ID)
	for _, c := range []struct {
		name string
		caps []string
		data []byte
		want uint32
	}{
		{"read", nil, call(id, nr("read")), allow},
		{"the last byte of the table", nil, call(id, nr("openat2")), allow},
		{"mount without its capability", nil, call(id, nr("mount")), eperm},
		{"mount with it", []string{"CAP_SYS_ADMIN"}, call(id, nr("mount")), allow},
		{"keyctl, even so", []string{"CAP_SYS_ADMIN"}, call(id, nr("keyctl")), eperm},
		{"io_uring_setup", nil, call(id, nr("io_uring_setup")), eperm},
		{"fork", nil, call(id, nr("clone"), uint64(unix.SIGCHLD)), allow},
		{"clone of a user namespace", nil, call(id, nr("clone"), unix.CLONE_NEWUSER), eperm},
		{"the same by a system guest", []string{"CAP_SYS_ADMIN"}, call(id, nr("clone"), unix.CLONE_NEWUSER), allow},
		{"clone3, whose flags are out of sight", nil, call(id, nr("clone3")), noSuchCall},
		{"unshare", nil, call(id, nr("unshare"), unix.CLONE_NEWUSER), eperm},
		{"unix socket", nil, call(id, nr("socket"), unix.AF_UNIX), allow},
		{"netlink socket", nil, call(id, nr("socket"), unix.AF_NETLINK), allow},
		{"vsock socket, which has no namespace", nil, call(id, nr("socket"), unix.AF_VSOCK), eperm},
		{"the same with dirt in the upper half", nil, call(id, nr("socket"), unix.AF_VSOCK|1<<32), eperm},
		{"an allowed family with dirt in the upper half", nil, call(id, nr("socket"), unix.AF_UNIX|1<<32), eperm},
		{"AF_QIPCRTR", nil, call(id, nr("socket"), 42), allow},
		{"personality query", nil, call(id, nr("personality"), 0xffffffff), allow},
		{"personality without randomization", nil, call(id, nr("personality"), 0x40000), eperm},
		{"ioctl", nil, call(id, nr("ioctl"), 0, unix.TIOCGWINSZ), allow},
		{"a subvolume of btrfs", nil, call(id, nr("ioctl"), 0, 0x5000940e), enotty},
		{"the same by a system guest, with dirt in the upper half", []string{"CAP_SYS_ADMIN"}, call(id, nr("ioctl"), 0, 1<<32|0x50009418), enotty},
		{"a clone of a file's data", nil, call(id, nr("ioctl"), 0, 0x40049409), allow},
		{"a call of the future", nil, call(id, 9999), noSuchCall},
		{"x32", nil, call(id, 0x40000000|nr("read")), noSuchCall},
		{"i386", nil, call(0x40000003, 3), kill},
	} {
		t.Run(c.name, func(t *testing.T) {
			prog, err := compile(c.caps, nil, special)
			if err != nil {
				t.Fatal(err)
			}
			vm, err := bpf.NewVM(prog)
			if err != nil {
				t.Fatal(err)
			}
			got, err := vm.Run(c.data)
			if err != nil {
				t.Fatal(err)
			}
			if uint32(got) != c.want {
				t.Errorf("got %#x, want %#x", uint32(got), c.want)
			}
		})
	}
}

// TestAbortOfAFirstProcessEndsIt executes the filter in processes that are
// the first of a PID namespace, and not.
func TestAbortOfAFirstProcessEndsIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("PID namespaces are made by root")
	}
	for name, c := range map[string]struct {
		namespaces uintptr
		first      bool
		script     string
		want       syscall.Signal
	}{
		"first, aborts":            {unix.CLONE_NEWPID, true, "kill -ABRT $$; sleep 60", unix.SIGSYS},
		"first, as it was":         {unix.CLONE_NEWPID, false, "kill -ABRT $$; exit 3", 0},
		"first, another signal":    {unix.CLONE_NEWPID, true, "kill -TERM $$; exit 3", 0},
		"first, aborts another":    {unix.CLONE_NEWPID, true, "sleep 60 & kill -ABRT $!; exit 3", 0},
		"not the first, as always": {0, true, "kill -ABRT $$; sleep 60", unix.SIGABRT},
	} {
		t.Run(name, func(t *testing.T) {
			filter := Filter
			if c.first {
				filter = FilterFirst
			}
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			b, err := filter(nil)
			if err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(os.Environ(), filterVariable+"="+hex.EncodeToString(b), "SCRIPT="+c.script)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.namespaces}
			out, err := cmd.CombinedOutput()
			st, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok {
				t.Fatal(err)
			}
			if c.want == 0 && st.ExitStatus() != 3 || c.want != 0 && st.Signal() != c.want {
				t.Errorf("%v, status %#x, output %q", err, uint32(st), out)
			}
		})
	}
}

// filterVariable has the filter for a process of this test.
const filterVariable = "CLEAVE_SECCOMP_TEST"

func TestMain(m *testing.M) {
	if text := os.Getenv(filterVariable); text != "" {
		runtime.LockOSThread()
		b, err := hex.DecodeString(text)
		if err == nil {
			err = install(b)
		}
		if err == nil {
			err = unix.Exec("/bin/sh", []string{"sh", "-c", os.Getenv("SCRIPT")}, os.Environ())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func install(b []byte) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(b) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&b[0]))}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&fprog)), 0, 0)
}

func TestFilterFits(t *testing.T) {
	b, err := Filter(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(b)/8)
	if len(b)/8 > unix.BPF_MAXINSNS/4 {
		t.Errorf("%d instructions", len(b)/8)
	}
}
