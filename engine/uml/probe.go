package uml

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// States of a finding.
const (
	ok      = "ok"
	limited = "limited"
	missing = "missing"
)

// report collects findings; the first that is missing makes the engine
// unavailable.
type report struct {
	findings []api.Finding
	reason   *api.Error
}

func (r *report) add(name, state, detail, remedy string) {
	r.findings = append(r.findings, api.Finding{Area: "uml", Name: name, State: state, Detail: detail, Remedy: remedy})
	if state == missing && r.reason == nil {
		r.reason = api.Errorf(api.CodeUnsupported, "this host can't run paravirtual machines: %s: %s", name, detail).WithHint("%s", remedy)
	}
}

// Probe implements machine.Monitor. The program itself, linux.uml, is a
// kernel of kind pvm, of which each guest may have another one.
func (*monitor) Probe(context.Context) (engine.Capabilities, []api.Finding) {
	r := &report{}
	probeArch(r)
	probeTracing(r)
	probeYama(r, "/proc/sys/kernel/yama/ptrace_scope")
	probeTun(r)
	probeMappings(r, "/proc/sys/vm/max_map_count")
	// Requests without data are none to its thread for disks, which flushes are
	// (ubd_submit_request and io_thread in arch/um/drivers/ubd_kern.c, since
	// Linux 5.11): it calls fsync(2) never.
	r.add("flushes", limited, "what a guest flushes stays in the host's page cache: a power failure of the host can lose it",
		"choose another kind for what must survive that")
	return engine.Capabilities{
		Available: r.reason == nil, Pause: true, Resize: true, Disks: true,
		Archs: []string{runtime.GOARCH}, MinMemory: minMemory, MaxCPUs: 1, Reason: r.reason,
	}, r.findings
}

func probeArch(r *report) {
	if runtime.GOARCH != "amd64" {
		r.add("processor", missing, "User Mode Linux is ported to x86-64, not to "+runtime.GOARCH, "choose kind vm or container")
	}
}

// probeTracing has a child execute a system call that it doesn't get to: what
// a guest's kernel does with each one.
func probeTracing(r *report) {
	cost, err := interceptedCall()
	if err != nil {
		r.add("tracing", missing, fmt.Sprintf("system calls of a child can't be intercepted: %v", err),
			"permit ptrace(2): the daemon may run in a container whose system call filter refuses it")
		return
	}
	r.add("tracing", ok, fmt.Sprintf("a system call is intercepted in %v", cost.Round(100*time.Nanosecond)), "")
}

// calls are intercepted to measure one.
const calls = 200

// interceptedCall starts a child that is stopped before its first
// instruction, has it run into system calls that are not executed
// (PTRACE_SYSEMU), and tells how long one takes.
func interceptedCall() (time.Duration, error) {
	var cost time.Duration
	var err error
	done := make(chan struct{})
	go func() { // a tracer is a thread, which ends here with its child
		defer close(done)
		runtime.LockOSThread()
		cost, err = traced()
	}()
	<-done
	return cost, err
}

func traced() (time.Duration, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// By /proc, since the file may have been replaced.
	p, err := os.StartProcess("/proc/self/exe", []string{exe}, &os.ProcAttr{
		Env: []string{}, Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.Pid, &status, 0, nil); err != nil || !status.Stopped() {
		return 0, fmt.Errorf("the child isn't stopped (status %#x): %w", uint32(status), err)
	}
	start := time.Now()
	for range calls {
		// Nothing was answered: the child takes it as it may, but can't do any
		// harm, for none of its system calls is executed.
		if _, _, e := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SYSEMU, uintptr(p.Pid), 0, 0, 0, 0); e != 0 {
			return 0, os.NewSyscallError("PTRACE_SYSEMU", e)
		}
		if _, err := unix.Wait4(p.Pid, &status, 0, nil); err != nil {
			return 0, err
		}
		if !status.Stopped() {
			return 0, fmt.Errorf("the child ended (status %#x)", uint32(status))
		}
	}
	return time.Since(start) / calls, nil
}

// probeYama reads which processes may trace others: 1 leaves own children,
// 2 and 3 not even those, to whom has no CAP_SYS_PTRACE
// (Documentation/admin-guide/LSM/Yama.rst).
func probeYama(r *report, path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return // no Yama
	}
	if scope, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && scope >= 2 {
		r.add("tracing without privileges", missing, fmt.Sprintf("kernel.yama.ptrace_scope is %d: no process may trace its own children", scope),
			"set kernel.yama.ptrace_scope to 1 (a value of 3 can't be changed until the next boot)")
	}
}

func probeTun(r *report) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		r.add("network devices", missing, err.Error(), "load the module tun, or use a kernel with CONFIG_TUN")
		return
	}
	_ = f.Close()
	r.add("network devices", ok, "/dev/net/tun", "")
}

// fewMappings are not enough for a process of 1 GiB whose pages are scattered
// in the guest's memory: each piece of it is a mapping of the host's.
const fewMappings = 1 << 18

func probeMappings(r *report, path string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n < fewMappings {
		r.add("large processes", limited, fmt.Sprintf("vm.max_map_count is %d: a process in a guest is sure to have %s of memory, above which it may fail when its pages are scattered", n, api.Bytes(n)*4*api.KiB),
			fmt.Sprintf("set vm.max_map_count to %d or more (sysctl.d(5))", fewMappings))
		return
	}
	r.add("large processes", ok, "vm.max_map_count is "+strings.TrimSpace(string(b)), "")
}
