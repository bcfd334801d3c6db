package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/machine/jail"
)

// swtpm is the program that is a trusted platform module.
const swtpm = "/usr/bin/swtpm"

// tpm is a trusted platform module beside QEMU: a program of another user,
// with a connection to QEMU and a directory for its memory.
type tpm struct {
	ours, theirs *os.File
	dir          string
}

func (t *tpm) close() {
	t.ours.Close()
	t.theirs.Close()
}

// openTPM prepares one whose memory is in state.
func openTPM(state string, uidBase uint32) (*tpm, error) {
	if _, err := os.Stat(swtpm); err != nil {
		return nil, api.Errorf(api.CodeUnsupported, "this host has no program for trusted platform modules").
			WithField("spec.machine.tpm").WithHint("install the package swtpm")
	}
	dir := filepath.Join(state, "tpm")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the TPM's directory: %w", err)
	}
	// The ids of an instance don't change, but those of its copy are others.
	owner := int(uidBase) + jail.ID + 1
	for _, name := range []string{dir, filepath.Join(dir, "tpm2-00.permall")} {
		if err := os.Lchown(name, owner, owner); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("give the TPM its memory: %w", err)
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect the TPM: %w", err)
	}
	return &tpm{ours: os.NewFile(uintptr(fds[0]), "tpm"), theirs: os.NewFile(uintptr(fds[1]), "tpm"), dir: dir}, nil
}

// trustedModule adds the device and the program.
func (c *commandLine) trustedModule(t *tpm) {
	c.add("-chardev", fmt.Sprintf("socket,id=tpm,fd=%d", c.Give(t.ours)), "-tpmdev", "emulator,id=tpm,chardev=tpm")
	c.device("tpm-crb", "tpmdev", "tpm")
	b := &machine.Command{Exe: swtpm}
	b.Args = []string{
		"swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", "dir=" + t.dir + ",mode=0600",
		"--ctrl", fmt.Sprintf("type=unixio,clientfd=%d", b.Give(t.theirs)),
	}
	c.Beside = b
	c.Write = append(c.Write, t.dir)
}
