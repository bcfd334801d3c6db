package qemu

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/cleave-project/cleave/engine/machine"
)

// Names in a guest's runtime directory.
const (
	monitorSocket = "qmp.sock"
	agentSocket   = "agent.sock"
	guestSocket   = "guest.sock"
	endFile       = "end.log"
	accelFile     = "accel" // how instructions are executed
)

// openGiven makes what a guest's QEMU gets for itself.
func openGiven(dir string, kernel, initrd string) (_ *given, err error) {
	g := &given{}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	for _, s := range []struct {
		name string
		to   **os.File
	}{{monitorSocket, &g.monitor}, {agentSocket, &g.agent}, {guestSocket, &g.guest}} {
		if s.name == guestSocket && kernel != "" {
			continue
		}
		if *s.to, err = machine.Listen(dir, s.name); err != nil {
			return nil, err
		}
	}
	// It is opened by name, as an unprivileged user: who may is told by its
	// mode, since nobody else gets into the directory.
	if g.end, err = os.OpenFile(filepath.Join(dir, endFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, err
	}
	if err = g.end.Chmod(0o666); err != nil {
		return nil, err
	}
	if kernel == "" {
		return g, nil
	}
	if g.kernel, err = os.Open(kernel); err != nil {
		return nil, fmt.Errorf("open the kernel: %w", err)
	}
	if g.initrd, err = os.Open(initrd); err != nil {
		return nil, fmt.Errorf("open the initramfs: %w", err)
	}
	return g, nil
}

func (g *given) close() {
	for _, f := range []*os.File{g.monitor, g.agent, g.guest, g.end, g.kernel, g.initrd} {
		if f != nil {
			f.Close()
		}
	}
}
