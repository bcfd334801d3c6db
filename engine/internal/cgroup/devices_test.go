package cgroup

import (
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeviceFilterLoadsUnderSignals sends the signal by which Go's runtime
// preempts threads, as a busy daemon gets it.
func TestDeviceFilterLoadsUnderSignals(t *testing.T) {
	if fd, err := loadDeviceFilter(GuestDevices); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skipf("needs BPF and the right to load programs: %v", err)
	} else if err == nil {
		unix.Close(fd)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, tid := os.Getpid(), unix.Gettid()
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			_ = unix.Tgkill(pid, tid, unix.SIGURG) // the thread lives as long as the test
		}
	}()
	defer func() { stop.Store(true); <-done }()
	for i := range 500 {
		fd, err := loadDeviceFilter(GuestDevices)
		if err != nil {
			t.Fatalf("load %d: %v", i, err)
		}
		unix.Close(fd)
	}
}
