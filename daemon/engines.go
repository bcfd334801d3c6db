package daemon

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/choice"
	"github.com/cleave-project/cleave/engine/container"
	"github.com/cleave-project/cleave/engine/qemu"
	"github.com/cleave-project/cleave/engine/uml"
	"github.com/cleave-project/cleave/engine/vmm"
	"github.com/cleave-project/cleave/keeper"
)

// ward is an engine as the daemon looks after it. Each has a runtime
// directory of its own, by which it knows its guests from those of others.
type ward interface {
	engine.Engine
	SetKeeper(ctx context.Context, k *keeper.Client) error
	Destroy()
}

// engines are all walls.
type engines struct {
	container *container.Engine
	wards     []ward
}

// openEngines opens them all; what this host can't do shows when it is asked
// for.
func openEngines(ctx context.Context, cfg Config, k *keeper.Client, agent string, log *slog.Logger) (*engines, error) {
	in := func(dir string) engine.Options {
		return engine.Options{
			Run: filepath.Join(cfg.Run, dir), LogDir: func(id string) string { return filepath.Join(cfg.Data, "logs", id) },
			Scope: cfg.scope(), Keeper: k, AgentBinary: agent, Log: log,
		}
	}
	e := &engines{}
	c, err := container.New(in("instances"))
	if err != nil {
		return nil, err
	}
	e.container, e.wards = c, append(e.wards, c)
	u, err := uml.New(in("pvm"))
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	e.wards = append(e.wards, u)
	vm, err := openVM(ctx, cfg, in)
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	e.wards = append(e.wards, vm)
	return e, nil
}

// openVM opens what runs virtual machines: our own monitor those that it can,
// QEMU all others.
func openVM(ctx context.Context, cfg Config, in func(dir string) engine.Options) (ward, error) {
	q, err := qemu.New(in("vm"))
	if err != nil {
		return nil, err
	}
	opts := in("vmm")
	program, err := cfg.libexec("cleave-vmm")
	if err != nil {
		opts.Log.Warn("QEMU will run all virtual machines", "reason", err)
		return choice.New(ctx, q)
	}
	v, err := vmm.New(program, opts)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return choice.New(ctx, q, v)
}

func (e *engines) all() []engine.Engine {
	var list []engine.Engine
	for _, w := range e.wards {
		list = append(list, w)
	}
	return list
}

// setKeeper hands every engine's guests to another keeper. One engine's
// trouble doesn't keep the others from theirs.
func (e *engines) setKeeper(ctx context.Context, k *keeper.Client, resync func(context.Context, engine.Engine) error) error {
	var errs []error
	for _, w := range e.wards {
		err := w.SetKeeper(ctx, k)
		if err == nil {
			err = resync(ctx, w)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (e *engines) destroy() {
	for _, w := range e.wards {
		w.Destroy()
	}
}

func (e *engines) close() error {
	var errs []error
	for _, w := range e.wards {
		errs = append(errs, w.Close())
	}
	return errors.Join(errs...)
}
