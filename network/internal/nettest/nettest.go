// Package nettest runs tests of networks in network namespaces of their own,
// so that no test ever changes, or depends on, the network of its host.
//
// A package calls Main from TestMain. Inside, New starts further namespaces:
// each is a process of its own that does nothing but live, and in which
// commands can be run. All of it ends with the test.
package nettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/network/internal/netns"
)

const marker = "CLEAVE_NETTEST"

// Main runs the tests of a package in a new network namespace, whose loopback
// is up. Where that isn't allowed it says so and runs nothing.
func Main(m *testing.M) {
	if os.Getenv(marker) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "set up loopback: %v: %s\n", err, out)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	for _, tool := range []string{"ip", "tc", "nft", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			fmt.Printf("skipped: %v (iproute2, nftables and util-linux have what the tests look with)\n", err)
			os.Exit(0)
		}
	}
	// All threads of a process must be in the namespace: that needs a new process.
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is sent when the thread ends
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case errors.Is(err, unix.EPERM):
		fmt.Println("skipped: a network namespace for the tests needs CAP_SYS_ADMIN (run as root)")
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// Namespace is a network namespace with a process in it.
type Namespace struct {
	PID int
	t   testing.TB
	cmd *exec.Cmd
	ns  *os.File
}

// New starts a namespace whose loopback is up. It ends with the test.
func New(t testing.TB) *Namespace {
	t.Helper()
	cmd := exec.Command("sleep", "600") // should the test be killed
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a namespace: %v", err)
	}
	n := &Namespace{PID: cmd.Process.Pid, t: t, cmd: cmd}
	t.Cleanup(n.End)
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID))
	if err != nil {
		t.Fatal(err)
	}
	n.ns = ns
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// Hang is how long tests wait for what must come. It ends one that hangs, and
// says nothing of how fast a machine is.
const Hang = 2 * time.Minute

// Self is the namespace that the tests run in.
func Self(t testing.TB) *Namespace {
	t.Helper()
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return &Namespace{PID: os.Getpid(), t: t, ns: ns}
}

// End kills the namespace's process.
func (n *Namespace) End() {
	if n.ns != nil {
		_ = n.ns.Close()
		n.ns = nil
	}
	if n.cmd.ProcessState == nil {
		_ = n.cmd.Process.Kill()
		_ = n.cmd.Wait()
	}
}

// Run runs a command in the namespace and returns what it printed.
func (n *Namespace) Run(args ...string) string {
	n.t.Helper()
	out, err := n.Try(args...)
	if err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try is Run for commands that may fail.
func (n *Namespace) Try(args ...string) (string, error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Hang)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{fmt.Sprintf("--net=/proc/%d/ns/net", n.PID)}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// Do calls f on a thread that is in the namespace, for opening sockets there.
func (n *Namespace) Do(f func() error) error {
	return netns.OnOwnThread(func() error {
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		return f()
	})
}

// Here runs a command in the test's own namespace and returns its output.
func Here(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
