// Package netns runs functions on threads that are in another network
// namespace than the rest of the process.
package netns

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// InNew runs f on a thread that is in a network namespace of its
// own, and returns when f has. The namespace ends with the thread. What
// else f opens there must be closed.
func InNew(f func()) error {
	return OnOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		f()
		return nil
	})
}

// OnOwnThread runs f on a thread that ends with it, so that f may change
// what threads have for themselves. It is never the process's first thread,
// which wouldn't end, and whose namespaces /proc/self and /proc/net show.
func OnOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// As long as this goroutine holds the first thread, the next has another.
			done <- OnOwnThread(f)
			runtime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}
