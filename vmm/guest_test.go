package vmm

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// host skips where there is no KVM; one that only emulates is good enough.
func host(t testing.TB) *kvm.System {
	t.Helper()
	s, err := kvm.Open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("no KVM: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
