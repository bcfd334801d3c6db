package boot

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// fail ends a machine that doesn't come to its entry point, with why.
func (m *machine) fail(err error) {
	e := api.AsError(err)
	m.say(e)
	m.status.Phase, m.status.Error = vitals.PhaseEnded, e
	m.status.Exit = api.ExitStatus{Code: 126, Reason: "exit"}
	if code, ok := api.CommandStatus(err); ok {
		m.status.Exit.Code = code
	}
	m.end(nil)
}

// say puts an error on the console.
func (m *machine) say(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "cleave: %v\n", err)
	}
}

// end powers the machine off. The status comes first: whatever hangs then,
// it is known. Nothing else runs any more but this process.
func (m *machine) end(lines []*port) {
	if m.control != nil {
		m.say(m.note())
	}
	for _, p := range lines {
		p.drain(drainGrace)
	}
	unix.Sync()
	m.settle()
	// The console may be the entry point's standard error, where the kernel's
	// farewell doesn't belong. It can't be silent from the start: at level 0 it
	// wouldn't tell of a panic either (console_verbose in kernel/printk).
	_ = os.WriteFile("/proc/sys/kernel/printk", []byte("0"), 0)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {} // PID 1 must not return
}

// settle leaves disks without a journal to be replayed, if that can be done:
// their file systems are read-only when nobody writes to them any more.
func (m *machine) settle() {
	disks := slices.Concat(m.volumes, m.plugged.files())
	if m.disk != nil {
		_ = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		disks = append(disks, m.disk)
	}
	for _, d := range disks {
		name := fmt.Sprintf("/proc/self/fd/%d", d.Fd())
		_ = unix.Mount("", name, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
}
