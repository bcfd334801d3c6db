// Command init is the first process of a test's guest: it loads the modules
// of its initramfs, mounts the disk of modules, says what came of it, and
// powers off.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("FAILED:", err)
	} else {
		fmt.Println("ALL IS WELL")
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println(err)
	}
}

func run() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		if err := load(filepath.Join("/modules", name)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[0], err)
		}
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for _, fs := range []string{"erofs", "overlay", "ext4"} {
		if !strings.Contains(string(known), "\t"+fs+"\n") {
			return fmt.Errorf("the kernel doesn't know %s", fs)
		}
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return more(unix.ByteSliceToString(u.Release[:]))
}

// more loads a module that the initramfs doesn't have from the disk of all.
func more(release string) error {
	disks, _ := filepath.Glob("/dev/[vu][db]*a")
	if len(disks) != 1 {
		return fmt.Errorf("there are the disks %v", disks)
	}
	if err := unix.Mount(disks[0], "/mnt", "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount the modules: %w", err)
	}
	deps, err := os.ReadFile("/mnt/modules.dep")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(deps)) {
		if file, _, _ := strings.Cut(line, ":"); strings.Contains(file, "/veth.ko") {
			fmt.Println("RELEASE", release)
			if strings.HasSuffix(file, ".ko") {
				return load(filepath.Join("/mnt", file))
			}
			return nil // compressed: for the guest's own tools
		}
	}
	return fmt.Errorf("modules.dep has no veth")
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.ENODEV {
		return err
	}
	return nil
}
