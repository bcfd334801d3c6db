package keeper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// tableSize is FDSize of proc_pid_status(5): slots, used or not.
func tableSize(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "FDSize:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no FDSize in %s", text)
	return 0
}

func TestManyGuestsDoNotEnlargeTheTablesOfNewOnes(t *testing.T) {
	k := newKeeper(t)
	first := k.start(k.request("first", "sleep"))
	before := tableSize(t, first.PID)
	var last Guest
	for i := 0; i < 300 && countFDs(t, k.pid()) <= 2*before; i++ {
		last = k.start(k.request("g"+strconv.Itoa(i), "sleep"))
	}
	if size := tableSize(t, last.PID); size > before {
		t.Errorf("the first guest's table of descriptors has %d slots, the last one's %d", before, size)
	}
}
