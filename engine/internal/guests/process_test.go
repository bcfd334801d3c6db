package guests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// leaderless makes this binary a process whose first thread has ended and
// whose others wait for the end of standard input.
const leaderless = "TEST_LEADERLESS"

func init() {
	if os.Getenv(leaderless) == "" {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	runtime.LockOSThread() // init runs on the first thread
	fmt.Println("ready")
	unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
}

func TestProcessLivesAsLongAsOneOfItsThreads(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), leaderless+"=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	start, err := StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	r, other := Record{PID: pid, StartTime: start}, Record{PID: pid, StartTime: start + 1}
	for stat := []byte(nil); !bytes.Contains(stat, []byte(") Z ")); { // the first thread, on its way out
		if stat, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	if !r.Alive() || other.Alive() {
		t.Errorf("alive: %t, one of another start: %t", r.Alive(), other.Alive())
	}
	in.Close()
	var info unix.Siginfo // waits, and leaves the zombie
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if r.Alive() {
		t.Error("a zombie is alive")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if r.Alive() {
		t.Error("a process that was waited for is alive")
	}
}
