package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// generationAddr is where the monitor keeps the generation's number. It is in
// the first MiB, which /dev/mem shows also of kernels that are strict.
const generationAddr = 0xdf000

// who tells host name, address, the generation's number and a random number.
func who() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	eth, err := net.InterfaceByName("eth0")
	if err != nil {
		return "", err
	}
	f, err := os.Open("/dev/mem")
	if err != nil {
		return "", err
	}
	defer f.Close()
	var generation, random [16]byte
	if _, err := f.ReadAt(generation[:], generationAddr); err != nil {
		return "", err
	}
	_, _ = rand.Read(random[:])
	return fmt.Sprintf("%s %s %x %x", name, eth.HardwareAddr, generation, random), nil
}

// become takes another host name and address, as an agent does in a clone, and
// draws other random numbers than those it has in common with its siblings:
// how is the first word of the answer.
func become(name, address, seed string) (string, error) {
	how, err := reseed(seed)
	if err != nil {
		return "", err
	}
	for _, c := range []string{"hostname " + name, "ip link set eth0 down", "ip link set eth0 address " + address, "ip link set eth0 up"} {
		words := strings.Fields(c)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	is, err := who()
	return how + " " + is, err
}

// reseed waits for a kernel that learns by itself of its new generation, and
// gives one that doesn't the host's seed.
func reseed(seed string) (how string, err error) {
	for _, bus := range []string{"acpi", "platform"} { // the latter since 6.10
		if _, err := os.Stat("/sys/bus/" + bus + "/drivers/vmgenid"); err == nil {
			return "kernel", kernelReseeded()
		}
	}
	b, err := hex.DecodeString(seed)
	if err != nil {
		return "", err
	}
	return "seed", giveSeed(b)
}

// kernelReseeded waits for the kernel's word that it has seen the new
// generation. An interrupt tells it, and programs may run before it has
// handled that.
func kernelReseeded() error {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "kmsg")
	defer f.Close()
	if err := f.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	record := make([]byte, 8<<10)
	for {
		n, err := f.Read(record)
		if err != nil && !errors.Is(err, unix.EPIPE) { // EPIPE: some were overwritten
			return fmt.Errorf("the kernel doesn't say that it is of another generation: %w", err)
		}
		if strings.Contains(string(record[:n]), "reseeded due to virtual machine fork") {
			return nil
		}
	}
}

// giveSeed mixes a seed into the kernel's random numbers and has it use it at
// once, as random(4) says.
func giveSeed(seed []byte) error {
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info := struct {
		bits, size int32
		seed       [32]byte
	}{bits: int32(8 * len(seed)), size: int32(len(seed))}
	copy(info.seed[:], seed)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); e != 0 {
		return fmt.Errorf("add a seed: %w", e)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); e != 0 {
		return fmt.Errorf("use the seed: %w", e)
	}
	return nil
}
