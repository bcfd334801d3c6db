package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
)

// host is a daemon with directories of its own.
type host struct {
	bin    string
	dir    string    // holds data and log
	run    string    // runtime directory
	cmd    *exec.Cmd // the daemon
	client *client.Client
}

// runDir makes a runtime directory on a tmpfs, as /run is on hosts.
func runDir() (dir string, unmount func() error, err error) {
	if dir, err = os.MkdirTemp("/run", "clbench"); err != nil {
		return "", nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711"); err != nil {
		return "", nil, errors.Join(fmt.Errorf("tmpfs on %s: %w", dir, err), os.Remove(dir))
	}
	return dir, func() error {
		// A keeper that is about to end has a file open.
		err := unix.Unmount(dir, 0)
		for end := time.Now().Add(endsWithin); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = unix.Unmount(dir, 0) {
			time.Sleep(20 * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
		return os.Remove(dir)
	}, nil
}

// endsWithin is how long the last processes may take to end; nothing tells.
const endsWithin = 2 * time.Second

// newHost starts a daemon with its data below dir.
func newHost(bin, dir, run string) (*host, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: guests are real")
	}
	h := &host{bin: bin, dir: dir, run: run}
	c, err := client.New(client.Options{Socket: h.socket()})
	if err != nil {
		return nil, err
	}
	h.client = c
	_, err = h.start()
	return h, err
}

func (h *host) data() string   { return filepath.Join(h.dir, "data") }
func (h *host) socket() string { return filepath.Join(h.run, "cleave.sock") }

// start runs the daemon and returns how long it took until it served.
func (h *host) start() (time.Duration, error) {
	ready, tell, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	log, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	h.cmd = exec.Command(filepath.Join(h.bin, "cleaved"), "--data", h.data(), "--run", h.run, "--log-level", "warn")
	h.cmd.Stdout, h.cmd.Stderr = log, log
	h.cmd.ExtraFiles = []*os.File{tell}
	h.cmd.Env = append(os.Environ(), "CLEAVE_READY_FD=3")
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt is ours to deal with
	begin := time.Now()
	err = h.cmd.Start()
	tell.Close()
	if err != nil {
		return 0, fmt.Errorf("%w (make build)", err)
	}
	if word, _ := io.ReadAll(ready); string(word) != "ready" {
		_ = h.cmd.Wait()
		h.cmd = nil
		return 0, h.explain("the daemon does not start")
	}
	return time.Since(begin), nil
}

// explain makes an error of what and the end of the daemon's log.
func (h *host) explain(what string) error {
	b, _ := os.ReadFile(filepath.Join(h.dir, "log"))
	return fmt.Errorf("%s; its log ends:\n%s", what, b[max(0, len(b)-2000):])
}

// stop ends the daemon with a signal; guests go on unless it is SIGPWR.
func (h *host) stop(sig syscall.Signal) error {
	if err := h.cmd.Process.Signal(sig); err != nil {
		return err
	}
	done := make(chan error, 1)
	cmd := h.cmd
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if sig == syscall.SIGKILL {
			return nil
		}
		return err
	case <-time.After(5 * time.Minute):
		_ = cmd.Process.Kill()
		return h.explain(fmt.Sprintf("the daemon does not end on %s", sig))
	}
}

// down stops all guests and takes everything off the machine.
func (h *host) down() error {
	h.client.Close()
	if h.cmd == nil {
		return nil
	}
	if h.cmd.ProcessState != nil {
		if _, err := h.start(); err != nil {
			return err
		}
	}
	if err := h.stop(syscall.SIGPWR); err != nil {
		return fmt.Errorf("taking the daemon down: %w", err)
	}
	return nil
}

// cli is a command of the command line tool.
func (h *host) cli(args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(h.bin, "cleave"), args...)
	c.Env = append(os.Environ(), "CLEAVE_SOCKET="+h.socket())
	return c
}

// wait follows an operation to its end.
func (h *host) wait(ctx context.Context, op *api.Operation, err error) error {
	if err == nil {
		_, err = h.client.Wait(ctx, op, nil)
	}
	return err
}

// keepers are the pids of the daemon's keeper and of its companion that holds
// what must outlive it.
func (h *host) keepers() ([]int, error) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		if b, err := os.ReadFile(p); err != nil || !bytes.Contains(b, []byte("cleave-keeper")) || !bytes.Contains(b, []byte(h.run)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err != nil {
			return nil, err
		}
		pids := []int{pid}
		for _, c := range children(pid) {
			if strings.HasPrefix(readString(fmt.Sprintf("/proc/%d/cmdline", c)), "cleave-keeper") {
				pids = append(pids, c)
			}
		}
		return pids, nil
	}
	return nil, errors.New("the keeper is not to be found")
}

// left lists what the daemon can leave on a machine. Its scope sets the names
// of kernel objects apart from those of other daemons, and follows from the
// data directory as daemon.Config has it.
func (h *host) left() []string {
	var all []string
	hash := sha256.Sum256([]byte(h.data()))
	scope := hex.EncodeToString(hash[:3])
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], h.dir) || strings.HasPrefix(f[4], h.run+"/")) {
			all = append(all, "mount "+f[4])
		}
	}
	for _, pattern := range []string{"/sys/class/net/clv" + scope + "*", "/sys/fs/cgroup/cleave-" + scope, "/sys/fs/cgroup/*/cleave-" + scope} {
		found, _ := filepath.Glob(pattern)
		all = append(all, found...)
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, _ := os.ReadFile(l); bytes.HasPrefix(b, []byte(h.dir)) {
			all = append(all, "loop device "+l)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		if bytes.Contains(b, []byte(h.dir)) || bytes.Contains(b, []byte(h.run)) {
			all = append(all, "process "+string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
		}
	}
	return all
}

// printLeft says what was left.
func (h *host) printLeft() {
	left := h.left()
	for end := time.Now().Add(endsWithin); len(left) > 0 && time.Now().Before(end); left = h.left() {
		time.Sleep(20 * time.Millisecond)
	}
	for _, l := range left {
		fmt.Println("left on the host:", l)
	}
	if len(left) == 0 {
		fmt.Println("\nNothing is left on the host: no process, mount, link, cgroup or loop device.")
	}
}
