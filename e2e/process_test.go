package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// findKeeper finds the keeper of a host by its command line.
func findKeeper(h *host) (int, error) {
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(b, []byte("cleave-keeper")) || !bytes.Contains(b, []byte(h.run)) {
			continue
		}
		return strconv.Atoi(filepath.Base(filepath.Dir(p)))
	}
	return 0, fmt.Errorf("no keeper of %s", h.run)
}

func keeperPID(t *testing.T, h *host) int {
	t.Helper()
	pid, err := findKeeper(h)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kill9(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) }
