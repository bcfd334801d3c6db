package confine

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/memory"
)

// files are the requests of ioctl for disks and ports, and for a terminal's
// modes, which are put back at the end.
var files = []uint32{
	unix.TUNSETOFFLOAD, unix.TUNSETVNETHDRSZ, unix.TUNSETVNETLE, unix.TUNSETQUEUE, unix.TUNGETIFF, unix.TUNGETFEATURES,
	unix.BLKDISCARD, unix.BLKZEROOUT, unix.BLKGETSIZE64, unix.BLKSSZGET, unix.BLKPBSZGET, unix.BLKIOMIN, unix.BLKIOOPT,
	unix.TCGETS, unix.TCSETS,
}

// everywhere is what Go's runtime asks of the kernel on any thread.
var everywhere = always(
	unix.SYS_FUTEX, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_SCHED_YIELD,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_CTL, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE,
	unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_TGKILL, unix.SYS_GETPID, unix.SYS_GETTID,
	unix.SYS_MADVISE, unix.SYS_MUNMAP, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RESTART_SYSCALL, unix.SYS_GETRANDOM,
)

// noExec allows memory to be mapped that can't be executed.
var noExec = []call{
	{unix.SYS_MMAP, 2, []condition{{unix.PROT_EXEC, 0}}},
	{unix.SYS_MPROTECT, 2, []condition{{unix.PROT_EXEC, 0}}},
}

// thread is what a vCPU's thread may ask for.
var thread = slices.Concat(
	[]call{{unix.SYS_IOCTL, 1, is(slices.Concat(kvm.RunRequests, memory.NeedRequests)...)}}, everywhere, noExec,
	always(unix.SYS_SECCOMP), // may only make it stricter
)

// process is what all others may.
var process = slices.Concat(
	[]call{{unix.SYS_IOCTL, 1, is(slices.Concat(kvm.Requests, files, memory.FaultRequests)...)}},
	everywhere, noExec,
	always(
		unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREADV, unix.SYS_PWRITEV,
		unix.SYS_PREADV2, unix.SYS_PWRITEV2, unix.SYS_LSEEK, unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_FALLOCATE,
		unix.SYS_FTRUNCATE, unix.SYS_FSTAT, unix.SYS_FSTATFS, unix.SYS_FCNTL, unix.SYS_COPY_FILE_RANGE,
		unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_ACCEPT4, unix.SYS_CONNECT,
		unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
		unix.SYS_EVENTFD2, unix.SYS_EPOLL_CREATE1, unix.SYS_PIPE2, unix.SYS_MEMFD_CREATE,
		unix.SYS_FADVISE64, unix.SYS_RT_SIGACTION, unix.SYS_SCHED_GETAFFINITY, unix.SYS_MINCORE, unix.SYS_SECCOMP,
	),
	[]call{
		{unix.SYS_SOCKET, 0, is(unix.AF_UNIX)},
		// A thread, never a process.
		{unix.SYS_CLONE, 0, []condition{{unix.CLONE_THREAD | unix.CLONE_VM, unix.CLONE_THREAD | unix.CLONE_VM}}},
	},
)

func always(numbers ...uint32) (out []call) {
	for _, n := range numbers {
		out = append(out, call{nr: n})
	}
	return out
}
