package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
)

// bareMemory is the RAM of a bare machine, Cleave's default for an
// application guest.
const bareMemory = 256

// bare is a monitor as one would start it by hand, with the kernel that
// Cleave's guest has and an init that does nothing but power off.
type bare struct {
	kind    api.Kind
	program string
	end     string // the command of busybox that ends it: a microvm has no power switch
	// hasty is what Cleave tells the kernel so that it boots sooner, which
	// whoever starts one by hand seldom knows.
	hasty   []string
	command func(kernel, initrd string, words []string) *exec.Cmd
}

var bares = []bare{
	{api.KindPVM, "a bare linux.uml", "poweroff -f", []string{"pty.legacy_count=0", "lpj=60000000", "initcall_blacklist=raid6_select_algo"}, func(kernel, initrd string, words []string) *exec.Cmd {
		args := []string{fmt.Sprintf("mem=%dM", bareMemory), "initrd=" + initrd, "quiet", "con=null", "ssl=null"}
		return exec.Command(kernel, append(args, words...)...)
	}},
	// Under translation a microvm has no clock to measure the time stamp
	// counter by; the kernel would wait for one forever.
	{api.KindVM, "a bare QEMU", "reboot -f", []string{"8250.nr_uarts=1", "no_timer_check", "tsc=reliable", "cryptomgr.notests"}, func(kernel, initrd string, words []string) *exec.Cmd {
		words = append([]string{"console=ttyS0", "quiet", "panic=-1", "reboot=t", "tsc_early_khz=2000000"}, words...)
		return exec.Command("qemu-system-x86_64", "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-m", strconv.Itoa(bareMemory),
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "null",
			"-kernel", kernel, "-initrd", initrd, "-append", strings.Join(words, " "))
	}},
}

// Targets beside a bare monitor.
const (
	machineRatio = 1.3
	machineExtra = 5 * mib
)

// machines times guests with a kernel of their own, from the typed command to
// an agent that has executed the entry point, beside bare monitors.
func (b *bench) machines(ctx context.Context) error {
	for _, m := range bares {
		title := fmt.Sprintf("Launch of kind %s beside %s", m.kind, m.program)
		kernel, err := b.kernel(ctx, m.kind)
		if err != nil {
			facts(os.Stdout, title, fact{what: "not measured", value: err.Error()})
			continue
		}
		list, err := b.machine(ctx, m, kernel)
		if err != nil {
			return err
		}
		facts(os.Stdout, title, list...)
	}
	return nil
}

// kernel has the daemon fetch one, and returns its file. An engine that this
// host doesn't have is an error that says why.
func (b *bench) kernel(ctx context.Context, kind api.Kind) (string, error) {
	op, err := b.host.client.FetchKernel(ctx, api.KernelFetch{Distribution: "debian", Kind: kind})
	if err := b.host.wait(ctx, op, err); err != nil {
		return "", err
	}
	for k, err := range b.host.client.Kernels(ctx) {
		if err != nil {
			return "", err
		}
		if k.Kind == kind {
			image := filepath.Join(b.host.data(), "kernels", k.Name, "image")
			_, err := os.Stat(image)
			return image, err
		}
	}
	return "", errors.New("no kernel was fetched")
}

func (b *bench) machine(ctx context.Context, m bare, kernel string) ([]fact, error) {
	initrd, err := b.tinyInitrd(string(m.kind)+"-end", m.end)
	if err != nil {
		return nil, err
	}
	var ours, theirs, byHand samples
	for i := range max(b.rounds/4, 3) + 1 {
		if err := theirs.run(ctx, m.command(kernel, initrd, m.hasty)); err != nil {
			return nil, err
		}
		if err := byHand.run(ctx, m.command(kernel, initrd, nil)); err != nil {
			return nil, err
		}
		if err := ours.run(ctx, b.host.cli("launch", "base", guest(i), "--kind", string(m.kind))); err != nil {
			return nil, err
		}
		if err := (&samples{}).run(ctx, b.host.cli("delete", "--force", guest(i))); err != nil {
			return nil, err
		}
	}
	ours, theirs, byHand = ours[1:], theirs[1:], byHand[1:]
	ratio := float64(ours.p50()) / float64(theirs.p50())
	list := []fact{
		{what: "launch base, p50", value: ms(ours.p50())},
		{what: "bare boot to power-off, p50", value: ms(byHand.p50())},
		{what: "the same with Cleave's kernel options", value: ms(theirs.p50())},
		{what: "ratio to that", value: fmt.Sprintf("%.2fx", ratio), target: fmt.Sprintf("<= %.1fx", machineRatio), ok: ratio <= machineRatio},
	}
	extra, err := b.monitorMemory(ctx, m, kernel)
	if err != nil {
		return nil, err
	}
	return append(list, extra...), nil
}

// monitorMemory compares what the monitors of idle guests take beside RAM.
func (b *bench) monitorMemory(ctx context.Context, m bare, kernel string) ([]fact, error) {
	initrd, err := b.tinyInitrd(string(m.kind)+"-idle", "sleep 1000000")
	if err != nil {
		return nil, err
	}
	name := guest(0)
	if err := (&samples{}).run(ctx, b.host.cli("launch", "base", name, "--kind", string(m.kind))); err != nil {
		return nil, err
	}
	in, err := b.host.client.Instance(ctx, name)
	if err != nil {
		return nil, err
	}
	ours, oerr := besideRAM(in.Status.PID, bareMemory*mib)
	if err := (&samples{}).run(ctx, b.host.cli("delete", "--force", name)); err != nil {
		return nil, err
	}
	c := m.command(kernel, initrd, m.hasty)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // linux.uml has processes beside it
	if err := c.Start(); err != nil {
		return nil, err
	}
	select { // as long as a boot takes; nothing tells of one that has no console
	case <-time.After(10 * time.Second):
	case <-ctx.Done():
	}
	theirs, terr := besideRAM(c.Process.Pid, bareMemory*mib)
	_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	_ = c.Wait()
	if err := errors.Join(oerr, terr, ctx.Err()); err != nil {
		return nil, err
	}
	return []fact{
		{what: "monitor beside the guest's RAM", value: fmt.Sprintf("%d MiB", ours/mib), target: fmt.Sprintf("<= bare + %d MB", machineExtra/mib), ok: ours <= theirs+machineExtra},
		{what: "bare monitor beside it", value: fmt.Sprintf("%d MiB", theirs/mib)},
	}, nil
}

// besideRAM is what is resident of a process but for its mapping of the size
// of the guest's RAM or more, which that lies in. Translated code counts on
// both sides, also where a monitor has more room for it than the guest has RAM.
func besideRAM(pid int, ram int64) (sum int64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var size int64
	translated := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if head := strings.Fields(sc.Text()); len(head) > 1 && strings.Contains(head[0], "-") {
			translated = head[1] == "rwxp" // nothing else is writable and executable
			continue
		}
		key, rest, _ := strings.Cut(sc.Text(), ":")
		words := strings.Fields(rest)
		if len(words) != 2 || words[1] != "kB" {
			continue
		}
		n, _ := strconv.ParseInt(words[0], 10, 64)
		switch key {
		case "Size":
			size = n << 10
		case "Rss":
			if size < ram*9/10 || translated {
				sum += n << 10
			}
		}
	}
	return sum, nil
}

// tinyInitrd is an initramfs of busybox alone, whose init is one command.
func (b *bench) tinyInitrd(name, command string) (string, error) {
	root := filepath.Join(b.host.dir, "initrd-"+name)
	if err := tinyRoot(b.host.bin, root); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(root, "init"), []byte("#!/bin/busybox sh\nexec /bin/busybox "+command+"\n"), 0o755); err != nil {
		return "", err
	}
	c := exec.Command("/bin/sh", "-c", `find . | "$0" cpio -o -H newc >"$1" 2>/dev/null`, filepath.Join(b.host.bin, "busybox"), root+".cpio")
	c.Dir = root
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make an initramfs: %w\n%s", err, out)
	}
	return root + ".cpio", nil
}
