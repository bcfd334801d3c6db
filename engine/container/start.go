package container

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/container/setup"
	"github.com/cleave-project/cleave/engine/internal/cgroup"
	"github.com/cleave-project/cleave/engine/internal/guests"
	"github.com/cleave-project/cleave/engine/internal/mountfd"
	"github.com/cleave-project/cleave/engine/internal/validate"
	"github.com/cleave-project/cleave/keeper"
)

// socketName is the agent's socket in a guest's runtime directory.
const socketName = "agent.sock"

// cloneFlags give a guest all namespaces of its own.
const cloneFlags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// undoTime bounds the clean-up after a failed start.
const undoTime = 20 * time.Second

// launch is one Start in progress.
type launch struct {
	e    *Engine
	spec *engine.Spec

	set    settings
	keeper *keeper.Client
	group  *cgroup.Group

	listener *os.File // becomes the guest's descriptor 3
	conn     *net.UnixConn
	guest    keeper.Guest
	userns   *os.File
	rlimits  []setup.Rlimit

	image, volume, kit *os.File
	files              []setup.File
	mounts             []*os.File // one for each of spec.Mounts
	staged             []string   // paths of those that are on the stage

	lap func(step string) // for the benchmark
}

// Start implements engine.Engine.
func (e *Engine) Start(ctx context.Context, spec *engine.Spec) (*engine.Guest, error) {
	return e.start(ctx, spec, func(string) {})
}

func (e *Engine) start(ctx context.Context, spec *engine.Spec, lap func(string)) (g *engine.Guest, err error) {
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
	if err := e.clear(ctx, spec.ID); err != nil {
		start.Finish(false)
		return nil, err
	}
	l := &launch{e: e, spec: spec, set: set, keeper: k, lap: lap}
	defer l.close()
	if err := l.run(ctx); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		if cerr := e.clean(undo, spec.ID); cerr != nil {
			e.log.Error("undo a failed start", "instance", spec.ID, "error", cerr)
		}
		start.Finish(false)
		return nil, err
	}
	start.Finish(true)
	return &engine.Guest{ID: spec.ID, PID: l.guest.PID, Started: l.guest.Started, Running: true}, nil
}

// run builds the guest. The clone and all that can be prepared without it
// go on at the same time; so do the network and the root afterwards.
func (l *launch) run(ctx context.Context) error {
	if err := l.makePlace(); err != nil {
		return err
	}
	l.lap("place")
	var g errgroup.Group
	g.Go(l.prepare)
	g.Go(func() error { return l.clone(ctx) })
	if err := g.Wait(); err != nil {
		return err
	}
	l.lap("clone")
	g = errgroup.Group{}
	g.Go(func() error {
		defer l.lap("network")
		if l.spec.AttachNet == nil {
			return nil
		}
		if err := l.spec.AttachNet(ctx, l.guest.PID); err != nil {
			return fmt.Errorf("attach %s to its networks: %w", l.spec.Name, err)
		}
		return nil
	})
	g.Go(func() error {
		defer l.lap("mounts")
		return l.send()
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := setup.Go(l.conn, l.entry()); err != nil {
		return l.refused(ctx, err)
	}
	err := l.await(ctx)
	l.lap("setup")
	return err
}

// clear removes what a start that a dying daemon cut short has left.
func (e *Engine) clear(ctx context.Context, id string) error {
	if _, err := os.Lstat(e.dir(id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return e.clean(ctx, id)
}

// makePlace makes runtime directory, socket and cgroup.
func (l *launch) makePlace() error {
	dir := l.e.dir(l.spec.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	if err := l.listen(dir); err != nil {
		return fmt.Errorf("make the agent's socket: %w", err)
	}
	if l.mayMount() && slices.ContainsFunc(l.spec.Mounts, func(m engine.Mount) bool { return m.ReadOnly }) {
		if err := l.e.openStage(); err != nil {
			return err
		}
	}
	var err error
	l.group, err = l.e.cgroups.Create(l.spec.ID, cgroup.Options{
		Delegate: l.spec.System || l.mayMount(), Owner: l.spec.UIDBase, CPUSet: l.spec.Resources.CPUSet != "",
	})
	if err != nil {
		return err
	}
	return l.group.Set(l.e.limits(l.spec.Resources, l.spec.Root.Dir, l.spec.System), true)
}

// mayMount tells whether the guest's root can change its mounts. It could
// mount cgroup hierarchies too, and so needs a place of its own in each.
func (l *launch) mayMount() bool { return mayMount(l.set.caps) }

func mayMount(caps []string) bool { return validate.CapMask(caps)&(1<<unix.CAP_SYS_ADMIN) != 0 }

// listen makes the guest's socket and, before there is a guest, the
// connection that it will take for the host's.
func (l *launch) listen(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// By descriptor, since a socket's path may have 107 bytes only.
	addr := &net.UnixAddr{Net: "unix", Name: socketPath(d)}
	ul, err := net.ListenUnix("unix", addr)
	if err != nil {
		return err
	}
	defer ul.Close()
	ul.SetUnlinkOnClose(false)
	if l.listener, err = ul.File(); err != nil {
		return err
	}
	l.conn, err = net.DialUnix("unix", nil, addr)
	return err
}

func socketPath(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName)
}

// prepare makes what needs no process of the guest.
func (l *launch) prepare() (err error) {
	if l.image, err = l.e.images.mount(l.spec.ID, l.spec.Image); err != nil {
		return err
	}
	if err = prepareVolume(l.spec.Root.Dir); err != nil {
		return err
	}
	if l.volume, err = mountfd.ClonePath(l.spec.Root.Dir); err != nil {
		return err
	}
	for _, m := range l.spec.Mounts {
		f, err := openSource(m)
		if err != nil {
			return err
		}
		l.mounts = append(l.mounts, f)
	}
	l.kit, l.files, err = makeKit(l.spec, l.group.Hierarchies())
	return err
}

// clone has the keeper make the guest's first process.
func (l *launch) clone(ctx context.Context) error {
	v2, procs, err := l.group.Placement()
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer v2.Close()
	ids := []keeper.IDMap{{Inside: 0, Outside: l.spec.UIDBase, Count: l.spec.IDCount}}
	l.guest, err = l.keeper.Start(ctx, &keeper.StartRequest{
		ID: l.spec.ID, Args: []string{"cleave-agent"}, Env: agentEnv,
		Exe: l.e.agent, Files: []*os.File{l.listener},
		Clone: cloneFlags, UIDMap: ids, GIDMap: ids,
		Cgroup: v2, CgroupProcs: procs,
		Terminal: l.spec.Proc.TTY, Stdin: l.spec.Proc.Stdin,
		Dir: l.e.dir(l.spec.ID), LogDir: l.e.LogDir(l.spec.ID), Owner: l.spec.UIDBase,
	})
	if err != nil {
		return err
	}
	// The agent has its copy: when it dies, its socket answers no more.
	l.listener.Close()
	if err := l.e.book.Write(guests.Record{
		ID: l.spec.ID, PID: l.guest.PID, StartTime: l.guest.StartTime, Started: l.guest.Started,
		Terminal: l.guest.Terminal, System: l.spec.System, Image: l.spec.Image.Digest,
	}); err != nil {
		return err
	}
	if l.userns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", l.guest.PID)); err != nil {
		return l.died(err)
	}
	return l.setLimits()
}

// agentEnv is the environment of our process in the guest, which nothing of
// the guest inherits. One processor's worth of the Go runtime is less memory.
var agentEnv = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}

// setLimits sets resource limits, which belong to the process and not to a
// namespace. The start time makes sure that the number is still the guest's.
func (l *launch) setLimits() error {
	now, err := guests.StartTime(l.guest.PID)
	if err == nil && now != l.guest.StartTime {
		err = fmt.Errorf("process %d is another by now", l.guest.PID)
	}
	if err != nil {
		return l.died(err)
	}
	return asOwner(l.spec.UIDBase, func() (err error) {
		l.rlimits, err = setRlimits(l.guest.PID, l.set.rlimits)
		return err
	})
}

// send finishes the mounts with the guest's id map and hands all over.
func (l *launch) send() error {
	if err := idmap(l.image, l.userns, 0); err != nil {
		return err
	}
	if err := idmap(l.volume, l.userns, 0); err != nil {
		return err
	}
	root, err := l.e.feature.overlay(l.image, l.volume, l.spec.UIDBase)
	if err != nil {
		return fmt.Errorf("build the root of %s: %w", l.spec.Name, err)
	}
	defer root.Close()
	fds := []*os.File{root, l.kit}
	for i, m := range l.spec.Mounts {
		attr := uint64(unix.MOUNT_ATTR_NODEV)
		if m.ReadOnly {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		if err := idmap(l.mounts[i], l.userns, attr); err != nil {
			return err
		}
		if !m.ReadOnly || !l.mayMount() {
			fds = append(fds, l.mounts[i])
			continue
		}
		path, copied, err := l.e.stage(l.mounts[i], l.spec.ID, i, l.guest.PID)
		if path != "" {
			l.staged = append(l.staged, path)
		}
		if err != nil {
			return err
		}
		defer copied.Close()
		fds = append(fds, copied)
	}
	if l.spec.Proc.TTY {
		console, err := l.console()
		if err != nil {
			return err
		}
		defer console.Close()
		fds = append(fds, console)
	}
	if err := setup.Send(l.conn, l.message(), fds); err != nil {
		return l.died(err)
	}
	return nil
}

var ptyPath = regexp.MustCompile(`^/dev/pts/[0-9]+$`)

// console clones the guest's terminal as a mount of one file.
func (l *launch) console() (*os.File, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", l.guest.PID))
	if err != nil {
		return nil, l.died(err)
	}
	if !ptyPath.MatchString(name) {
		return nil, api.Errorf(api.CodeInternal, "the terminal of %s is %s, not below /dev/pts", l.spec.Name, name)
	}
	m, err := mountfd.ClonePath(name)
	if err != nil {
		return nil, err
	}
	// 136 to 143 are Unix98 pty slaves (devices.txt).
	var st unix.Stat_t
	if err := unix.Fstat(int(m.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) < 136 || unix.Major(st.Rdev) > 143 {
		m.Close()
		return nil, api.Errorf(api.CodeInternal, "the terminal of %s, %s, is no pseudoterminal", l.spec.Name, name)
	}
	return m, nil
}

// await waits for the guest's answer, its end, or the context's.
func (l *launch) await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { l.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err := setup.Wait(l.conn, l.spec.System)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return api.Errorf(api.CodeTimeout, "start %s: gave up waiting for its first process: %w", l.spec.Name, ctx.Err())
	}
	var e *api.Error
	if errors.As(err, &e) {
		return fmt.Errorf("start %s: %w", l.spec.Name, e)
	}
	return l.died(err)
}

// refused is the error for a guest that takes no more: it has said why, if
// it had the time, before it closed the connection.
func (l *launch) refused(ctx context.Context, err error) error {
	if said := l.await(ctx); said != nil {
		return said
	}
	return l.died(err)
}

// died is the error for a guest that ended while its wall was being built.
func (l *launch) died(err error) error {
	return api.Errorf(api.CodeInternal, "start %s: its first process ended while its wall was being built: %w",
		l.spec.Name, err).WithHint("its log may say why: %s", l.e.LogDir(l.spec.ID))
}

func (l *launch) close() {
	for _, path := range l.staged {
		if err := unstage(path); err != nil {
			l.e.log.Error("clear the stage", "instance", l.spec.ID, "error", err)
		}
	}
	for _, f := range append([]*os.File{l.listener, l.userns, l.image, l.volume, l.kit}, l.mounts...) {
		if f != nil {
			f.Close()
		}
	}
	if l.conn != nil {
		l.conn.Close()
	}
}
