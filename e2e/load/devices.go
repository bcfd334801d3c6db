package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// devices counts the functions on the bus, those of them with a driver, and
// the disks and ports that came of them.
func devices() (string, error) {
	var n [4]int
	for i, dir := range []string{"/sys/bus/pci/devices", "/sys/bus/virtio/drivers/virtio_blk", "/sys/class/block", "/sys/class/net"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return "", err
		}
		n[i] = len(entries)
	}
	return fmt.Sprint(n), nil
}

// see waits for a disk by its serial number and for a port by its address, and
// answers with both.
func see(serial, address string) (string, error) {
	for range 6000 {
		if has("/sys/block/*/serial", serial) && has("/sys/class/net/*/address", address) {
			return serial + " " + address, nil
		}
		time.Sleep(10 * time.Millisecond) // nothing tells of all that comes
	}
	return "", fmt.Errorf("there is no disk %s, or no port %s", serial, address)
}

func has(pattern, what string) bool {
	names, _ := filepath.Glob(pattern)
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == what {
			return true
		}
	}
	return false
}
