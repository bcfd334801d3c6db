package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
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
		if *s.to, err = listen(dir, s.name); err != nil {
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

// listen makes a listening socket with a name in dir. It is named by
// descriptor, since a socket's path may have 107 bytes only.
func listen(dir, name string) (*os.File, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the guest's %s: %w", name, err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}
