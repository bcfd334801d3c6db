package stockhost

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// Spec is what to run.
type Spec struct {
	Kernel  *Kernel
	Busybox string            // a static one
	Files   map[string]string // path in the host: file to copy
	Command string            // shell text
	Append  string            // further kernel parameters
	// Output gets the console, as it comes.
	Output io.Writer
}

// Emulator is the program that plays the machine.
const Emulator = "qemu-system-x86_64"

var statusLine = regexp.MustCompile(`^stockhost: status (\d+)\s*$`)

// ErrNoStatus is returned by Run when the machine ended, or ran out of time,
// before its command.
var ErrNoStatus = errors.New("the host ended before its command")

// Run boots the host, runs the command and returns its exit status. Files of
// the run lie in dir until it ends.
func Run(ctx context.Context, dir string, s *Spec) (int, error) {
	initramfs, disk := filepath.Join(dir, "initramfs"), filepath.Join(dir, "disk")
	if err := s.writeInitramfs(initramfs); err != nil {
		return 0, fmt.Errorf("make initramfs: %w", err)
	}
	if err := s.writeDisk(ctx, disk); err != nil {
		return 0, fmt.Errorf("make root disk: %w", err)
	}
	defer os.Remove(disk)
	c := exec.CommandContext(ctx, Emulator, s.arguments(initramfs, disk)...)
	var complaints bytes.Buffer // apart: two writers to one output would race
	c.Stderr = &complaints
	c.WaitDelay = 5 * time.Second
	console, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := c.Start(); err != nil {
		return 0, fmt.Errorf("boot a stock host: %w", err)
	}
	status := -1
	lines := bufio.NewReader(console)
	for {
		line, err := lines.ReadString('\n')
		if m := statusLine.FindStringSubmatch(line); m != nil {
			status, _ = strconv.Atoi(m[1])
		}
		_, _ = io.WriteString(s.Output, line)
		if err != nil {
			break
		}
	}
	err = c.Wait()
	switch {
	case ctx.Err() != nil:
		return 0, fmt.Errorf("%w: %w", ErrNoStatus, ctx.Err())
	case err != nil:
		return 0, fmt.Errorf("emulator: %w: %s", err, bytes.TrimSpace(complaints.Bytes()))
	case status < 0:
		return 0, ErrNoStatus
	}
	return status, nil
}

// arguments describe a machine with as little as a stock kernel needs: ACPI
// and PCI to find the disk, a serial line.
func (s *Spec) arguments(initramfs, disk string) []string {
	return []string{
		"-M", "q35",
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "2048",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", s.Kernel.Image, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off " + s.Append,
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=" + disk,
		"-device", "virtio-blk-pci,drive=disk",
	}
}
