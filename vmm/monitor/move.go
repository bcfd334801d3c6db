package monitor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/migrate"
)

// moves is what there is of a migration, guarded by Monitor.mu.
type moves struct {
	now    control.Migration
	cancel context.CancelFunc // while one goes on
	coming *vmm.Machine       // whose memory follows it
	// settled, while who has the guest is undecided, is called with whether it
	// shall be here.
	settled func(here bool) error
	// resume, while a guest's memory doesn't follow it, sends the rest of it.
	resume func(context.Context, []net.Conn) error
}

// leaving is the guest of a machine as package migrate knows it.
type leaving struct {
	*vmm.Move
	monitor *Monitor
	mirrors []*mirror
}

// Volumes implements migrate.Guest.
func (l leaving) Volumes() []migrate.Volume {
	out := []migrate.Volume{image{l.Image()}}
	for _, v := range l.mirrors {
		out = append(out, v)
	}
	return out
}

// mirrored tells whether a disk's content goes along.
func (l leaving) mirrored(name string) bool {
	return slices.ContainsFunc(l.mirrors, func(v *mirror) bool { return v.name == name })
}

// Freeze implements migrate.Guest: what the guest wrote to disks is there for
// who opens them elsewhere.
func (l leaving) Freeze() ([]byte, error) {
	state, err := l.Move.Freeze()
	if err != nil {
		return nil, err
	}
	l.monitor.mu.Lock()
	defer l.monitor.mu.Unlock()
	for _, d := range l.monitor.devices {
		if d.flush == nil || l.mirrored(d.Name) {
			continue
		}
		if err := d.flush(); err != nil {
			return nil, fmt.Errorf("disk %q: %w", d.Name, err)
		}
	}
	return state, nil
}

// image is a machine's memory as a volume, and as a sink that may be filled
// later.
type image struct{ vmm.Image }

// Begin implements migrate.Volume.
func (i image) Begin() ([]migrate.Range, error) { return ranges(i.Image.Begin()) }

// Written implements migrate.Volume.
func (i image) Written() ([]migrate.Range, error) { return ranges(i.Image.Written()) }

// Await implements migrate.LaterSink.
func (i image) Await(want func(migrate.Range)) error {
	return i.Image.Await(func(p vmm.Part) { want(migrate.Range(p)) })
}

// Missing implements migrate.LaterSink.
func (i image) Missing() []migrate.Range {
	out, _ := ranges(i.Image.Missing(), nil)
	return out
}

func ranges(list []vmm.Part, err error) (out []migrate.Range, _ error) {
	for _, p := range list {
		out = append(out, migrate.Range(p))
	}
	return out, err
}

// Migrate implements control.Machine.
func (m *Monitor) Migrate(ctx context.Context, c control.Migrate, files []*os.File) (control.Migration, error) {
	conns, err := connections(files)
	if err != nil {
		return control.Migration{}, err
	}
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = m.with(func(machine *vmm.Machine) error {
		if c.Resume {
			return m.resume(ctx, conns)
		}
		return m.leave(ctx, cancel, machine, c, conns)
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.moves.now, err
}

// leave sends a machine's guest away.
func (m *Monitor) leave(ctx context.Context, cancel context.CancelFunc, machine *vmm.Machine, c control.Migrate, conns []net.Conn) (err error) {
	move, err := machine.StartMove()
	if err != nil {
		return err
	}
	mirrors, err := m.mirrors(c.Mirror)
	if err == nil {
		err = m.mayLeave(c.Mirror)
	}
	if err != nil {
		move.End()
		return err
	}
	m.moved(func(s *moves) { s.now, s.cancel = control.Migration{State: control.Leaving}, cancel })
	go func() { // a guest that ends goes nowhere
		select {
		case <-machine.Ended():
			cancel()
		case <-ctx.Done():
		}
	}()
	o := migrate.Options{Downtime: c.Downtime, Throttle: !c.NoThrottle, PostCopy: c.PostCopy, Progress: func(r migrate.Report) {
		m.moved(func(s *moves) {
			if s.now.Report = r; r.Phase == control.Following {
				s.now.State, s.now.Error, s.cancel = control.Following, "", nil
			}
		})
	}}
	if c.Identity != nil {
		id := migrate.Identity(*c.Identity)
		o.Identity = &id
	}
	_, err = migrate.Send(ctx, conns, leaving{move, m, mirrors}, o)
	m.left(move, err)
	return err
}

// left notes how sending a guest away has ended.
func (m *Monitor) left(move *vmm.Move, err error) {
	var cut *migrate.Interrupted
	switch {
	case err == nil:
		m.moved(func(s *moves) { s.now.State, s.now.Error, s.cancel = control.Gone, "", nil })
		move.Gone()
	case errors.As(err, &cut):
		m.interrupted(move, cut)
	case errors.Is(err, migrate.ErrUndecided):
		m.undecided(err, func(here bool) error {
			if !here {
				move.Gone()
				return nil
			}
			defer move.End()
			return move.Thaw()
		})
	default:
		move.End()
		m.moved(func(s *moves) { s.now.State, s.now.Error, s.cancel = control.Stayed, err.Error(), nil })
	}
}

// interrupted has what is left of a guest wait until it is sent, or nobody
// needs it any more.
func (m *Monitor) interrupted(move *vmm.Move, cut *migrate.Interrupted) {
	m.moved(func(s *moves) {
		s.now.State, s.now.Error, s.cancel = control.Interrupted, cut.Error(), nil
		s.resume = func(ctx context.Context, conns []net.Conn) error {
			_, err := cut.Resume(ctx, conns)
			m.left(move, err)
			return err
		}
		s.settled = func(here bool) error {
			switch {
			case !here:
				move.Gone()
				return nil
			case cut.Ran:
				return errors.New("the guest has gone on elsewhere since: what is here of it is past")
			}
			defer move.End()
			return move.Thaw()
		}
	})
}

// resume goes on with what was interrupted.
func (m *Monitor) resume(ctx context.Context, conns []net.Conn) error {
	m.mu.Lock()
	f := m.moves.resume
	m.moves.resume, m.moves.settled = nil, nil
	m.mu.Unlock()
	if f == nil {
		return errors.New("resume a migration: there is none that was interrupted")
	}
	return f(ctx, conns)
}

// mayLeave tells what keeps the guest here.
func (m *Monitor) mayLeave(mirrored []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.devices {
		if d.stays != "" && !slices.Contains(mirrored, d.Name) {
			return fmt.Errorf("move the guest: device %q: %s", d.Name, d.stays)
		}
	}
	return nil
}

func (m *Monitor) moved(f func(*moves)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.moves)
}

// undecided has the guest wait for a word, and does f with that.
func (m *Monitor) undecided(err error, f func(here bool) error) {
	m.moved(func(s *moves) {
		s.now.State, s.now.Error, s.cancel, s.settled = control.Undecided, err.Error(), nil, f
	})
}

// Migration implements control.Machine.
func (m *Monitor) Migration(context.Context) (control.Migration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.moves.now
	if m.moves.coming != nil {
		now.Left = m.moves.coming.Absent()
	}
	return now, nil
}

// CancelMigration implements control.Machine.
func (m *Monitor) CancelMigration(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.moves.cancel == nil {
		return errors.New("cancel a migration: there is none that could be")
	}
	m.moves.cancel()
	return nil
}

// SettleMigration implements control.Machine.
func (m *Monitor) SettleMigration(_ context.Context, s control.Settle) error {
	m.mu.Lock()
	f, resume := m.moves.settled, m.moves.resume
	m.moves.settled, m.moves.resume = nil, nil
	m.mu.Unlock()
	if f == nil {
		return errors.New("settle a migration: there is none that is undecided")
	}
	err := f(s.Here)
	if err != nil {
		m.moved(func(v *moves) { v.settled, v.resume = f, resume })
		return err
	}
	state := control.Gone
	if s.Here {
		state = control.Stayed
	}
	m.moved(func(v *moves) { v.now.State = state })
	return nil
}

// connections takes over what is open as such.
func connections(files []*os.File) (out []net.Conn, err error) {
	for _, f := range files {
		c, e := net.FileConn(f)
		f.Close()
		if e != nil {
			err = errors.Join(err, fmt.Errorf("migrate over %s: %w", f.Name(), e))
			continue
		}
		out = append(out, c)
	}
	if err != nil {
		for _, c := range out {
			c.Close()
		}
		return nil, err
	}
	return out, nil
}

// forget has the host read a disk anew that another one has written to.
func forget(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
