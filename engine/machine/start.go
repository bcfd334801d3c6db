package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/guests"
	"github.com/cleave-project/cleave/engine/internal/validate"
	"github.com/cleave-project/cleave/engine/machine/jail"
	"github.com/cleave-project/cleave/engine/machine/vitals"
	"github.com/cleave-project/cleave/keeper"
)

// Bounds of waiting.
const (
	undoTime = 20 * time.Second // for the clean-up after a failed start
	// bootTime is for a guest to execute its entry point. Under translation
	// on a busy host a boot takes a minute; whoever starts a guest may bound
	// it closer.
	bootTime = 5 * time.Minute
)

// launch is one Start in progress.
type launch struct {
	e    *Engine
	spec *engine.Spec
	set  settings
	plan Plan

	start  *guests.Start
	keeper *keeper.Client
	group  *cgroup.Group
	files  []*os.File // of the plan
	wall   *jail.Wall
	guest  keeper.Guest
	record guests.Record
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, spec *engine.Spec) (*engine.Guest, error) {
	set, err := e.validate(spec)
	if err != nil {
		return nil, err
	}
	k, err := e.book.Keeper()
	if err != nil {
		return nil, err
	}
	start, err := e.book.Begin(spec.ID)
	if err != nil {
		return nil, err
	}
	if err := e.Clean(ctx, spec.ID); err != nil { // what a daemon that died has left
		start.Finish(false)
		return nil, err
	}
	l := &launch{e: e, spec: spec, set: set, keeper: k, start: start, plan: Plan{Spec: spec, Dir: e.book.Dir(spec.ID)}}
	defer l.close()
	if err := l.run(ctx); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if cerr := e.Clean(undo, spec.ID); cerr != nil {
			e.log.Error("undo a failed start", "instance", spec.ID, "error", cerr)
		}
		start.Finish(false)
		return nil, err
	}
	start.Finish(true)
	return &engine.Guest{ID: spec.ID, PID: l.guest.PID, Started: l.guest.Started, Running: true}, nil
}

// firmware tells whether the guest is a system of its own.
func (l *launch) firmware() bool { return l.spec.Machine.Firmware.Type != "" }

// terminal tells whether the monitor's standard streams are a terminal.
func (l *launch) terminal() bool { return l.spec.Proc.TTY || l.spec.System || l.firmware() }

func (l *launch) run(ctx context.Context) error {
	if err := os.Mkdir(l.plan.Dir, 0o700); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	if err := l.openDisks(ctx); err != nil {
		return fmt.Errorf("start %s: %w", l.spec.Name, err)
	}
	wirer, wires := l.e.monitor.(Wirer)
	if !wires && l.spec.Taps != nil {
		taps, err := l.spec.Taps(ctx)
		l.files = append(l.files, taps...)
		if l.plan.Taps = taps; err != nil {
			return fmt.Errorf("attach %s to its networks: %w", l.spec.Name, err)
		}
	}
	if err := l.clone(ctx); err != nil {
		return err
	}
	if wires {
		if err := l.wire(ctx, wirer); err != nil {
			return err
		}
	}
	if err := l.wall.Build(ctx); errors.Is(err, io.EOF) {
		return l.withOutput(api.Errorf(api.CodeInternal, "start %s: its monitor's process ended while the wall was being built", l.spec.Name))
	} else if err != nil {
		return fmt.Errorf("start %s: %w", l.spec.Name, err)
	}
	return l.await(ctx)
}

// clone makes the monitor's process and its place.
func (l *launch) clone(ctx context.Context) error {
	cmd, err := l.e.monitor.Command(ctx, &l.plan)
	if err != nil {
		return fmt.Errorf("start %s: %w", l.spec.Name, err)
	}
	defer cmd.closeGiven()
	if l.wall, err = l.buildWall(cmd); err != nil {
		return fmt.Errorf("start %s: %w", l.spec.Name, err)
	}
	l.record = guests.Record{
		ID: l.spec.ID, Terminal: l.terminal(), System: l.spec.System, Image: l.spec.Image.Digest,
		Machine: &guests.Machine{
			Firmware: l.firmware(), Terminal: l.spec.Proc.TTY, Stdin: l.spec.Proc.Stdin, Maintenance: l.spec.Maintenance,
			Memory: int64(l.spec.Machine.Memory), Overhead: int64(cmd.Overhead),
			Limit: int64(l.spec.Resources.Memory), UIDBase: l.spec.UIDBase, Paced: cmd.Paced,
		},
	}
	if err := l.e.canPace(l.record, l.spec.Resources); err != nil {
		return err
	}
	l.group, err = l.e.cgroups.Create(l.spec.ID, cgroup.Options{CPUSet: l.spec.Resources.CPUSet != ""})
	if err != nil {
		return err
	}
	if err := l.group.Set(limits(l.spec.Resources, l.record, l.spec.Root.Dir), true); err != nil {
		return err
	}
	v2, procs, err := l.group.Placement()
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer v2.Close()
	ids := []keeper.IDMap{{Inside: 0, Outside: l.spec.UIDBase, Count: l.spec.IDCount}}
	l.guest, err = l.keeper.Start(ctx, &keeper.StartRequest{
		ID: l.spec.ID, Args: []string{"cleave-agent", jail.Arg}, Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=none"},
		Exe: l.e.agent, Files: l.wall.Files(),
		Clone: jail.CloneFlags, UIDMap: ids, GIDMap: ids,
		Cgroup: v2, CgroupProcs: procs,
		Terminal: l.terminal(),
		Dir:      l.plan.Dir, LogDir: l.e.LogDir(l.spec.ID), Owner: l.spec.UIDBase,
	})
	if err != nil {
		return err
	}
	l.record.PID, l.record.StartTime, l.record.Started = l.guest.PID, l.guest.StartTime, l.guest.Started
	return l.e.book.Write(l.record)
}

// wire connects a monitor that finds its network in its own namespace.
func (l *launch) wire(ctx context.Context, w Wirer) error {
	if l.spec.AttachNet != nil {
		if err := l.spec.AttachNet(ctx, l.guest.PID); err != nil {
			return fmt.Errorf("attach %s to its networks: %w", l.spec.Name, err)
		}
	}
	if err := w.Wire(ctx, &l.plan, l.guest.PID); err != nil {
		return fmt.Errorf("attach %s to its networks: %w", l.spec.Name, err)
	}
	return nil
}

// buildWall makes the wall for a command.
func (l *launch) buildWall(cmd *Command) (*jail.Wall, error) {
	filter, err := monitorFilter(cmd.Trace)
	if err != nil {
		return nil, err
	}
	spec := jail.Spec{
		UIDBase: l.spec.UIDBase, Program: cmd.program(), Seccomp: filter,
		Show: cmd.Show, Write: cmd.Write, Links: cmd.Links, Devices: cmd.Devices,
		// User Mode Linux has the guest's RAM in a file there.
		Tmp: l.spec.Machine.Memory + 64*api.MiB,
	}
	if cmd.Beside != nil {
		p := cmd.Beside.program()
		spec.Beside = &p
	}
	return jail.New(spec)
}

// await waits until the guest is what Start promises: of an image, that its
// entry point has been executed.
func (l *launch) await(ctx context.Context) error {
	g := l.e.guest(l.record)
	ready := make(chan error, 1)
	wait, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	go func() { ready <- l.ready(wait, g) }() // ends with the context
	var err error
	select {
	case err = <-ready:
	case <-l.start.Ended():
		cancel()
		return l.endedEarly()
	}
	if err == nil {
		return nil
	}
	// What made the wait fail may be the guest's end, of which the keeper
	// tells a moment later.
	if !l.record.Alive() {
		select {
		case <-l.start.Ended():
			return l.endedEarly()
		case <-wait.Done():
		}
	}
	if said := l.said(); said != nil {
		return said
	}
	if wait.Err() != nil && ctx.Err() == nil {
		err = api.Errorf(api.CodeTimeout, "start %s: its entry point was not executed within %v", l.spec.Name, bootTime)
	} else {
		err = fmt.Errorf("start %s: %w", l.spec.Name, err)
	}
	return l.withOutput(err)
}

// ready waits for the monitor and then for the guest.
func (l *launch) ready(ctx context.Context, g *Guest) error {
	if err := l.e.monitor.Running(ctx, g); err != nil {
		return err
	}
	if l.firmware() {
		return nil
	}
	if err := l.e.started(ctx, l.spec.ID); err != nil {
		return err
	}
	if l.spec.Machine.Restore != "" {
		l.e.syncClock(ctx, l.spec.ID)
	}
	return nil
}

// endedEarly tells what it means that the monitor has ended already.
func (l *launch) endedEarly() error {
	if l.firmware() {
		return l.withOutput(api.Errorf(api.CodeInternal, "start %s: its monitor ended at once", l.spec.Name))
	}
	s, err := readStatus(l.plan.Dir)
	switch {
	case err != nil:
		return l.withOutput(fmt.Errorf("start %s: its monitor ended: %w", l.spec.Name, err))
	case s.Error != nil:
		return fmt.Errorf("start %s: %w", l.spec.Name, s.Error)
	case s.Phase != vitals.PhaseBooting:
		return nil // it was quick
	}
	return l.withOutput(api.Errorf(api.CodeInternal, "start %s: its kernel ended before the entry point was executed", l.spec.Name))
}

// said is why the guest could not execute its entry point, if it told so.
func (l *launch) said() error {
	if l.firmware() {
		return nil
	}
	if s, err := readStatus(l.plan.Dir); err == nil && s.Error != nil {
		return fmt.Errorf("start %s: %w", l.spec.Name, s.Error)
	}
	return nil
}

// lastOutput is how much of what a guest wrote goes into an error.
const lastOutput = 600

// withOutput adds the last that the guest wrote to the reason why it didn't
// start.
func (l *launch) withOutput(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var out []byte
	_ = keeper.ReadLogs(ctx, l.e.LogDir(l.spec.ID), keeper.LogOptions{Since: l.guest.Started}, func(e keeper.LogEntry) error {
		out = append(out, e.Data...)
		out = out[max(0, len(out)-4*lastOutput):]
		return nil
	})
	text := printable(out)
	if text == "" {
		return err
	}
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.Errorf(api.CodeInternal, "%w", err)
	}
	return api.Errorf(e.Code, "%w", err).WithHint("the last it wrote: %s", text)
}

func (l *launch) close() {
	for _, f := range l.files {
		if f != nil {
			f.Close()
		}
	}
	if l.wall != nil {
		l.wall.Close()
	}
}

// program is the command as the wall takes it.
func (c *Command) program() jail.Program {
	p := jail.Program{Exe: c.Exe, Args: c.Args, Env: c.Env}
	for _, f := range c.files {
		p.Files = append(p.Files, jail.File{File: f.file, Std: f.std, Access: f.access})
	}
	return p
}

// closeGiven closes what the command was given for good.
func (c *Command) closeGiven() {
	for _, f := range c.files {
		if f.given {
			f.file.Close()
		}
	}
	if c.Beside != nil {
		c.Beside.closeGiven()
	}
}

// limits completes resources for the monitor's cgroup.
func limits(r api.Resources, rec guests.Record, root string) cgroup.Limits {
	overhead := api.Bytes(rec.Machine.Overhead)
	// The RAM that the machine was started with may be given back by a
	// balloon, and taken again.
	r.Memory = api.Bytes(rec.Machine.Memory) + overhead
	if r.MemorySoft > 0 {
		r.MemorySoft += overhead
	}
	r.PIDs = pids(r.PIDs, rec.System) + monitorThreads
	if rec.Machine.Paced {
		r.DiskRead, r.DiskWrite, r.DiskReadIO, r.DiskWriteO = 0, 0, 0, 0
	}
	return cgroup.Limits{Resources: r, Together: true, Devices: cgroup.BlockDevices(root)}
}

// monitorThreads is for the monitor's own threads. User Mode Linux has a
// process of the host for each one of the guest, which come on top.
const monitorThreads = 512

// pids is how many processes and threads the guest may have.
func pids(asked int64, system bool) int64 {
	switch {
	case asked > 0:
		return asked
	case system:
		return 32768
	}
	return 4096
}

// settings are what is asked for a guest, checked and translated.
type settings struct {
	sysctls [][2]string
	rlimits []validate.Rlimit
	drop    uint64 // capabilities
}
