package lab

import (
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/engine/qemu/accel"
)

// accelerator tells whether QEMU can execute hosts by hardware. It is
// measured once: a /dev/kvm that only emulates is slower than QEMU itself.
var accelerator = sync.OnceValue(func() bool {
	speed, err := accel.KVM()
	return err == nil && speed >= accel.Enough
})

// nested tells whether that hardware's virtualization is there for guests.
var nested = sync.OnceValue(func() bool {
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		b, err := os.ReadFile("/sys/module/" + module + "/parameters/nested")
		if err == nil && (strings.HasPrefix(string(b), "Y") || strings.HasPrefix(string(b), "1")) {
			return true
		}
	}
	return false
})

// Descriptors that QEMU is started with, the first being number 3.
const (
	fdWire = 3 + iota
	fdDisk
	fdAgent
)

// arguments describe a host as a small server: ACPI and PCI Express. All that
// it has to the outside are descriptors.
func (h *Host) arguments() []string {
	processor := []string{"-accel", "kvm", "-cpu", "host"}
	if !accelerator() || (h.KVM && !nested()) {
		cpu := "max,la57=off" // five levels of tables cost time
		if !h.KVM {
			cpu += ",svm=off"
		}
		processor = []string{"-accel", "tcg,thread=multi,tb-size=256", "-cpu", cpu}
	}
	img := h.lab.Image
	more := h.Args
	if h.Daemon {
		more += " cleave.daemon"
	}
	command := strings.Join([]string{
		// Mitigations cost an emulated processor time, and protect nothing.
		"console=ttyS0 quiet panic=-1 mitigations=off kvm-amd.nested=0 random.trust_cpu=on",
		"cleave.host=" + h.Name, "cleave.address=" + h.Address + "/24", "cleave.hosts=" + h.lab.names(), more,
	}, " ")
	args := append([]string{
		"-name", h.Name, "-M", "q35", "-smp", fmt.Sprint(h.CPUs), "-m", fmt.Sprintf("%dM", h.Memory>>20),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", img.Kernel(), "-initrd", img.Initramfs(), "-append", command,
		"-device", "virtio-serial-pci",
		"-chardev", fmt.Sprintf("socket,id=agent,server=on,wait=off,fd=%d", fdAgent),
		"-device", "virtserialport,chardev=agent,name=org.cleave.agent",
		"-netdev", fmt.Sprintf("stream,id=wire,server=off,addr.type=fd,addr.str=%d", fdWire),
		"-device", "virtio-net-pci,netdev=wire,romfile=,mac=" + h.MAC,
		"-device", "virtio-rng-pci",
	}, processor...)
	for name, file := range map[string]string{"root": img.Root(), "modules": img.Modules(), "files": h.files} {
		if file != "" {
			args = append(args, "-blockdev", fmt.Sprintf("driver=file,node-name=%s,read-only=on,filename=%s", name, strings.ReplaceAll(file, ",", ",,")),
				"-device", "virtio-blk-pci,drive="+name+",serial="+name)
		}
	}
	return append(args,
		"-blockdev", fmt.Sprintf("driver=nbd,node-name=data,server.type=fd,server.str=%d", fdDisk),
		"-device", "virtio-blk-pci,drive=data,serial=data")
}
