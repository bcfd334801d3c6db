package vmm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/qemu/accel"
	"github.com/cleave-project/cleave/vmm/control"
)

// Names in a guest's runtime directory.
const (
	controlSocket = "control.sock"
	agentSocket   = "agent.sock"
	endFile       = "end" // where cleave-vmm notes how the guest ended
)

// monitor is what cleave-vmm does as a machine.Monitor.
type monitor struct {
	binary string
	speed  func() (accel.Speed, error) // of KVM

	mu  sync.Mutex
	kvm *state // what was measured last
}

func newMonitor(binary string) *monitor { return &monitor{binary: binary, speed: accel.KVM} }

// Name implements machine.Monitor.
func (*monitor) Name() string { return Name }

// Kind implements machine.Monitor.
func (*monitor) Kind() api.Kind { return api.KindVM }

// Probe implements machine.Monitor.
func (m *monitor) Probe(context.Context) (engine.Capabilities, []api.Finding) {
	caps := engine.Capabilities{
		Pause: true, Resize: true, Disks: true, Plug: true, Save: true, Track: true,
		MinMemory: minMemory, MaxCPUs: maxCPUs, Archs: []string{runtime.GOARCH},
	}
	k := m.measure()
	f := api.Finding{Area: "vm", Name: "engine vmm", State: ok, Detail: k.detail}
	if !k.usable {
		f.State, f.Remedy = limited, k.remedy
		f.Detail = "not used: " + k.detail
		caps.Reason = api.AsError(m.works())
	}
	caps.Available = k.usable
	return caps, []api.Finding{f}
}

// do makes a request of a guest's monitor.
func do(ctx context.Context, g *machine.Guest, request func(context.Context, *control.Client) error) error {
	conn, err := machine.Dial(ctx, g.ID, g.Dir, controlSocket)
	if err != nil {
		return err
	}
	c := control.NewClient(conn)
	defer c.Close()
	err = request(ctx, c)
	if e := net.Error(nil); errors.As(err, &e) || errors.Is(err, io.EOF) {
		return machine.Unanswered(g.ID, err)
	}
	return err
}

// Running implements machine.Monitor.
func (*monitor) Running(ctx context.Context, g *machine.Guest) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error {
		_, err := c.Status(ctx)
		return err
	})
}

// Agent implements machine.Monitor.
func (*monitor) Agent(ctx context.Context, g *machine.Guest) (io.ReadWriteCloser, error) {
	return machine.Dial(ctx, g.ID, g.Dir, agentSocket)
}

// Pause implements machine.Monitor.
func (*monitor) Pause(ctx context.Context, g *machine.Guest) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error { return c.Pause(ctx) })
}

// Resume implements machine.Monitor.
func (*monitor) Resume(ctx context.Context, g *machine.Guest) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error { return c.Resume(ctx) })
}

// PowerButton implements machine.Monitor.
func (*monitor) PowerButton(ctx context.Context, g *machine.Guest) error {
	return do(ctx, g, func(ctx context.Context, c *control.Client) error { return c.PowerButton(ctx) })
}

// Tell implements machine.Teller.
func (*monitor) Tell(*machine.Guest) engine.Vitals { return engine.Vitals{Accel: "kvm"} }

// reasons are ours for how cleave-vmm says that a guest ended (vmm.Reason). A
// reset is how the kernel of an application guest panics; how far the guest
// was tells what it means.
var reasons = map[string]string{
	"power-off":    "poweroff",
	"stopped":      "poweroff", // by Save
	"triple-fault": "panic",
}

// Ended implements machine.Monitor.
func (*monitor) Ended(g *machine.Guest) api.ExitStatus {
	f, err := os.Open(filepath.Join(g.Dir, endFile))
	if err != nil {
		return api.ExitStatus{}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64))
	if err != nil {
		return api.ExitStatus{}
	}
	s := api.ExitStatus{Reason: reasons[strings.TrimSpace(string(text))]}
	if s.Reason == "panic" {
		s.Code = 255
	}
	return s
}
