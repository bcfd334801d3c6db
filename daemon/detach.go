package daemon

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/cleave-project/cleave/api"
)

// readyEnv names the descriptor by which a detached daemon says that it
// serves.
const readyEnv = "CLEAVE_READY_FD"

// Detach starts a daemon of its own session with the same arguments, for
// hosts without systemd, and returns when it serves. Its output goes to
// cleaved.log in the data directory.
func Detach(cfg Config) error {
	if err := cfg.complete(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.Data, 0o711); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(cfg.Data, "cleaved.log"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(a string) bool { return a == "--detach" || a == "--detach=true" })
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return err
	}
	// The end of the pipe comes with the word or with the process.
	if word, _ := io.ReadAll(ready); string(word) == "ready" {
		return cmd.Process.Release()
	}
	_ = cmd.Wait()
	said, _ := io.ReadAll(io.NewSectionReader(log, from, 1<<16))
	return api.Errorf(api.CodeUnavailable, "cleaved did not start: %s", bytes.TrimPrefix(bytes.TrimSpace(said), []byte("cleaved: "))).
		WithHint("see %s", log.Name())
}

// tellReady answers Detach.
func tellReady() {
	if os.Getenv(readyEnv) == "" {
		return
	}
	f := os.NewFile(3, "ready")
	fmt.Fprint(f, "ready")
	f.Close()
	os.Unsetenv(readyEnv)
}
