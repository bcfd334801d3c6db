package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const tracing = "/sys/kernel/tracing"

// traceShutdowns has the host's KVM note the exceptions that it injects, and
// where a guest's processor gave up: AMD's leave nothing of that for the
// monitor to tell. A test that fails logs it.
func traceShutdowns(t testing.TB) {
	t.Helper()
	if err := unix.Mount("tracing", tracing, "tracefs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	for _, set := range []struct{ name, value string }{
		{"events/kvm/kvm_exit/filter", "isa == 2 && exit_reason == 0x7f || isa == 1 && exit_reason == 2"},
		{"events/kvm/kvm_exit/enable", "1"},
		{"events/kvm/kvm_inj_exception/enable", "1"},
		{"trace", ""}, // empties it
	} {
		if err := os.WriteFile(filepath.Join(tracing, set.name), []byte(set.value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		if b, err := os.ReadFile(filepath.Join(tracing, "trace")); err == nil {
			t.Logf("%s", b[max(0, len(b)-4096):])
		}
	})
}
