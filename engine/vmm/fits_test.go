package vmm

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
)

// A system that boots by firmware is QEMU's guest: it is told so, whatever
// else would keep it from being this engine's.
func TestAGuestWithFirmwareIsSentToQEMU(t *testing.T) {
	for _, firmware := range []string{"uefi", "bios"} {
		err := (&monitor{}).fits(&engine.Spec{ID: "a", Machine: &engine.Machine{Firmware: engine.Firmware{Type: firmware}}})
		if !api.IsCode(err, api.CodeUnsupported) {
			t.Fatalf("%s: %v", firmware, err)
		}
		if e := api.AsError(err); e.Field != "spec.machine.firmware" || !strings.Contains(e.Hint, "--engine qemu") {
			t.Errorf("%s: field %q, hint %q", firmware, e.Field, e.Hint)
		}
	}
}
