// Package boot is the first process of a machine's initramfs: it loads
// modules, finds the disks by their names, reads the control disk (package
// vitals), mounts the image and the root disk into one tree, sets up network
// and files, and becomes PID 1 of an application guest or executes the init
// of a system with the agent beside it. It writes to the control disk how far
// it came and how the entry point ended, then powers the machine off.
//
// The initramfs has /init, which calls Run; /dev/console; and /modules with
// the kernel's modules, of which /modules/order names those to load, in that
// order. The kernel's command line says how the disks are told apart
// (vitals.DisksArg).
//
// All of it runs inside the guest and with the guest's rights only. What it
// mounts and writes it resolves in the guest's root, whose links lead nowhere
// else, but nothing here defends a guest against its own image.
package boot

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// machine is what boots.
type machine struct {
	byOrder bool // disks are told apart by their order, as User Mode Linux has them
	events  *uevents
	control *os.File
	boot    *vitals.Boot
	status  vitals.Status

	root    *os.File   // the guest's root, a mount
	disk    *os.File   // the root disk's file system
	volumes []*os.File // file systems of volumes that can be written
	plugged *plugs     // those that came later; nil if none can
}

// Run boots the machine. It is called as PID 1 of an initramfs, in which
// nothing else has run, and doesn't return: it ends with the machine, or
// executes the guest's init.
func Run() {
	m := &machine{}
	err := m.run()
	m.fail(err)
}

// run returns why the guest doesn't run.
func (m *machine) run() error {
	if err := m.prepare(); err != nil {
		return err
	}
	if err := m.known(); err != nil {
		return err
	}
	for _, step := range []func() error{
		m.mountRoot, m.mountFiles, m.mountKernel, m.enter, m.mountVolumes, m.mountModules, m.network, m.limit, m.sealRoot, m.withhold,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	switch {
	case m.boot.Maintenance:
		return m.maintain()
	case m.boot.System:
		return m.system()
	}
	return m.application()
}

// prepare gets the kernel to where the disks are.
func (m *machine) prepare() error {
	for _, fs := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		_ = os.Mkdir(fs.at, 0o755)
		flags := uintptr(unix.MS_NOSUID | unix.MS_NOEXEC)
		if fs.kind != "devtmpfs" {
			flags |= unix.MS_NODEV
		}
		if err := unix.Mount(fs.kind, fs.at, fs.kind, flags, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", fs.at, err)
		}
	}
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	m.byOrder = slices.Contains(strings.Fields(string(line)), vitals.DisksArg+vitals.DisksUBD)
	if m.events, err = newUevents(); err != nil {
		return err
	}
	return m.openControl(loadModules())
}

// Waits for devices. A kernel says at once what it has found, but emulation
// on a busy host can be slow by a factor of a hundred.
const (
	deviceGrace = 20 * time.Second
	// brokenGrace is for the control disk when a module is missing: it may be
	// the one that the disk needs.
	brokenGrace = 5 * time.Second
)

// openControl opens the control disk and reads it. An error from before is
// returned when there is somewhere to note it.
func (m *machine) openControl(before error) error {
	grace := deviceGrace
	if before != nil {
		grace = brokenGrace
	}
	dev, err := m.findDisk(diskControl, grace)
	if err != nil {
		return errors.Join(before, err)
	}
	f, err := os.OpenFile(dev, os.O_RDWR|unix.O_DSYNC, 0)
	if err != nil {
		return errors.Join(before, err)
	}
	m.control = f
	if m.status, err = vitals.ReadStatus(f); err == nil && before == nil {
		m.boot, err = vitals.ReadBoot(f)
	}
	return errors.Join(before, err)
}

// known notes that the machine boots. When it isn't the first time since the
// host started it, the machine was reset.
func (m *machine) known() error {
	last := m.status
	m.status = vitals.Status{Phase: vitals.PhaseBooting, Boots: last.Boots + 1}
	switch {
	case last.Boots == 0:
	case last.Phase == vitals.PhaseEnding && m.boot.System:
		// It rebooted.
	case last.Phase == vitals.PhaseEnded:
		// Power off was not the end, whatever that was good for.
		m.status = last
		m.end(nil)
	default:
		m.status.Exit = api.ExitStatus{Code: -1, Reason: reasonPanic}
		if last.Phase == vitals.PhaseBooting || !m.boot.System {
			// What brought the machine down would do so again.
			m.status.Phase = vitals.PhaseEnded
			m.end(nil)
		}
	}
	return m.note()
}

const reasonPanic = "panic"

// note writes the status.
func (m *machine) note() error { return vitals.WriteStatus(m.control, &m.status) }
