package qemu

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/accel"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// monitor is what QEMU does as a machine.Monitor.
type monitor struct {
	tools *tools
	speed func() (accel.Speed, error) // of KVM

	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	looking sync.WaitGroup // goroutines that connect

	mu       sync.Mutex
	sessions map[string]*session
	kvm      *kvmState // what was measured last
}

func newMonitor() *monitor {
	m := &monitor{tools: newTools(), speed: accel.KVM, sessions: map[string]*session{}}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Name implements machine.Monitor.
func (m *monitor) Name() string { return "qemu" }

// Kind implements machine.Monitor.
func (m *monitor) Kind() api.Kind { return api.KindVM }

// Command implements machine.Monitor.
func (m *monitor) Command(ctx context.Context, p *machine.Plan) (_ *machine.Command, err error) {
	spec := p.Spec.Machine
	h, err := m.host(ctx, spec)
	if err != nil {
		return nil, err
	}
	if spec.Firmware.Type != "" {
		if h.firmware, err = openFirmware(m.tools.firmware, spec.Firmware); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				h.firmware.close()
			}
		}()
		h.firmware.maxCPUs = roomForCPUs()
		if spec.Firmware.TPM {
			if h.firmware.tpm, err = openTPM(spec.Firmware.State, p.UIDBase); err != nil {
				return nil, err
			}
		}
	}
	g, err := openGiven(p.Dir, spec.Kernel.Image, spec.Kernel.Initrd)
	if err != nil {
		return nil, err
	}
	if err = os.WriteFile(filepath.Join(p.Dir, accelFile), []byte(h.accel), 0o600); err != nil {
		g.close()
		return nil, err
	}
	return newCommand(p, *h, *g), nil
}

// host finds what a machine needs on this host.
func (m *monitor) host(ctx context.Context, spec *engine.Machine) (*host, error) {
	a, err := archNamed(spec.Arch)
	if err != nil {
		return nil, err
	}
	h := &host{arch: a}
	if h.program, err = m.tools.find(ctx, a); err != nil {
		return nil, err
	}
	if h.accel, err = m.accel(spec); err != nil {
		return nil, err
	}
	if h.accel == "tcg" && a.name == "amd64" && spec.Firmware.Type == "" {
		h.tsc = accel.TSC()
	}
	return h, nil
}

// Running implements machine.Monitor. A guest that goes on from a file is
// brought back here.
func (m *monitor) Running(ctx context.Context, g *machine.Guest) error {
	c, s, err := m.client(ctx, g)
	if err != nil {
		return err
	}
	state, err := c.Status(ctx)
	if err == nil {
		err = s.ports(ctx, c)
	}
	if err == nil && state == qmp.StateIncoming {
		err = s.restore(ctx, c)
	}
	return machine.Unanswered(g.ID, err)
}

// Agent implements machine.Monitor.
func (m *monitor) Agent(ctx context.Context, g *machine.Guest) (io.ReadWriteCloser, error) {
	return machine.Dial(ctx, g.ID, g.Dir, agentSocket)
}

// Pause implements machine.Monitor.
func (m *monitor) Pause(ctx context.Context, g *machine.Guest) error {
	return m.command(ctx, g, (*qmp.Client).Stop)
}

// Resume implements machine.Monitor.
func (m *monitor) Resume(ctx context.Context, g *machine.Guest) error {
	return m.command(ctx, g, (*qmp.Client).Cont)
}

// PowerButton implements machine.Monitor.
func (m *monitor) PowerButton(ctx context.Context, g *machine.Guest) error {
	return m.command(ctx, g, (*qmp.Client).PowerDown)
}

// command runs one that needs nothing and returns nothing.
func (m *monitor) command(ctx context.Context, g *machine.Guest, run func(*qmp.Client, context.Context) error) error {
	c, _, err := m.client(ctx, g)
	if err != nil {
		return err
	}
	return machine.Unanswered(g.ID, run(c, ctx))
}

// close ends all connections. Guests run on.
func (m *monitor) close() {
	m.cancel()
	m.looking.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.sessions {
		s.close()
	}
	clear(m.sessions)
}
