package e2e

import (
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMachinesMeetBadLuck does to guests behind each wall what happens to
// them in the long run.
func TestMachinesMeetBadLuck(t *testing.T) {
	h := newWalls(t)
	t.Run("little memory", func(t *testing.T) {
		h := h.in(t)
		for kind, memory := range map[string][2]string{"pvm": {"60MiB", "64MiB"}, "vm": {"90MiB", "96MiB"}} {
			h.refused("needs at least "+memory[1], "launch", "base", "small", "--kind", kind, "--memory", memory[0])
			h.refused("needs at least "+memory[1], "create", "base", "small", "--kind", kind, "--memory", "1MiB")
			h.do("launch", "base", "small", "--kind", kind, "--memory", memory[1])
			h.do("exec", "small", "--", "true")
			h.do("delete", "--force", "small")
		}
	})
	for _, kind := range kinds {
		h.do("launch", "base", kind, "--kind", kind, "--", "sleep", "100000")
	}
	t.Run("time passes while they are paused", func(t *testing.T) {
		h := h.in(t)
		for _, kind := range kinds {
			h.do("pause", kind)
		}
		time.Sleep(5 * time.Second) // which they miss
		for _, kind := range kinds {
			h.do("resume", kind)
			before := time.Now().Unix()
			out := strings.TrimSpace(h.do("exec", kind, "--", "date", "+%s"))
			after := time.Now().Unix()
			if says, err := strconv.ParseInt(out, 10, 64); err != nil || says < before-1 || says > after+1 {
				t.Errorf("%s says it is %s, between %d and %d", kind, out, before, after)
			}
		}
	})
	t.Run("a monitor hangs", func(t *testing.T) {
		h := h.in(t)
		for _, kind := range kinds[1:] {
			pid := h.show(kind).Status.PID
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			h.do("exec", "container", "--", "true")
			h.do("list")
			h.do("delete", "--force", kind)
			eventually(t, kind+" is gone", func() bool { return syscall.Kill(pid, 0) != nil })
		}
	})
}
