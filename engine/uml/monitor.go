package uml

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/uml/mconsole"
)

// monitor runs linux.uml.
type monitor struct {
	again string // cleave-agent, by way of which it reboots
}

var _ machine.Monitor = (*monitor)(nil)

// Name implements machine.Monitor.
func (*monitor) Name() string { return "uml" }

// Kind implements machine.Monitor.
func (*monitor) Kind() api.Kind { return api.KindPVM }

// Bounds of what a guest can have.
const (
	mostDisks = 16 // MAX_DEV in arch/um/drivers/ubd_kern.c
	// minMemory is less than which Debian's kernel runs out of memory over our
	// initramfs, at times: 60 MiB do, 56 don't always.
	minMemory = 64 * api.MiB
)

// Validate implements machine.Monitor.
func (*monitor) Validate(spec *engine.Spec) error {
	unsupported := func(field, what string) error {
		return api.Errorf(api.CodeUnsupported, "kind pvm %s", what).WithField(field).
			WithHint("choose kind vm for that (--kind vm)")
	}
	m := spec.Machine
	disks := 4 + len(spec.Mounts)
	if m != nil {
		disks += len(m.Disks)
	}
	switch {
	case m == nil:
		return api.Errorf(api.CodeInternal, "instance %s: the kind pvm needs a machine's settings", spec.ID)
	case m.Kernel.Image == "" || m.Firmware.Type != "":
		return unsupported("spec.machine.firmware", "boots images with a kernel of the host's, and has no firmware for systems of their own")
	case m.Firmware.TPM:
		return unsupported("spec.machine.tpm", "has no TPM")
	case m.Arch != "" && m.Arch != runtime.GOARCH:
		return unsupported("spec.machine.arch", fmt.Sprintf("executes on the host's processor (%s), not on %s", runtime.GOARCH, m.Arch))
	case m.CPUs > 1:
		return unsupported("spec.resources.cpus", fmt.Sprintf("has one virtual CPU, not %d", m.CPUs))
	case m.Restore != "":
		return unsupported("spec.machine", "can't save and restore a guest's memory")
	case disks > mostDisks:
		return unsupported("spec.mounts", fmt.Sprintf("has %d disks at most, not %d", mostDisks, disks))
	case m.Memory < minMemory:
		return api.Errorf(api.CodeInvalid, "%s of memory: a guest of kind pvm needs %s to come up", m.Memory, minMemory).
			WithField("spec.resources.memory")
	}
	for _, d := range m.Disks {
		if d.CDROM {
			return unsupported("spec.machine.iso", "has no CD drive")
		}
	}
	return nil
}

// console is where a guest is told what its agent can't be.
func console(g *machine.Guest) *mconsole.Console {
	return &mconsole.Console{
		Dir: filepath.Join(g.Dir, ownDir), Name: filepath.Join(umid, "mconsole"), Replies: filepath.Join(g.Dir, replyDir),
	}
}

// patience is how long a guest's kernel may take for an answer.
const patience = 10 * time.Second

// Running implements machine.Monitor. There's nothing to be said to it yet:
// its kernel answers when it has booted, which the agent tells as well.
func (*monitor) Running(context.Context, *machine.Guest) error { return nil }

// Pause implements machine.Monitor. The guest's kernel could be asked to stop
// itself, but one that hangs or doesn't want to would not.
func (*monitor) Pause(context.Context, *machine.Guest) error { return errors.ErrUnsupported }

// Resume implements machine.Monitor.
func (*monitor) Resume(context.Context, *machine.Guest) error { return errors.ErrUnsupported }

// PowerButton implements machine.Monitor.
func (*monitor) PowerButton(ctx context.Context, g *machine.Guest) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := console(g).Command(ctx, "cad")
	return err
}

// Ended implements machine.Monitor. linux.uml sends itself SIGABRT when the
// guest's kernel panics, and only then (panic_exit in
// arch/um/kernel/um_arch.c). As the first process of its namespace it would
// go on doing that; the system call filter ends it, by SIGSYS.
func (*monitor) Ended(g *machine.Guest) api.ExitStatus {
	if g.Exit.Signal == "SIGSYS" {
		return api.ExitStatus{Code: 255, Reason: "panic"}
	}
	return api.ExitStatus{}
}
