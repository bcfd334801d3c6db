package qemu

import (
	"strconv"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestRootDiskGrowsWhileItsGuestRuns(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "while :; do sleep 1; done")
	enginetest.Start(t, e, spec)
	room := func() api.Bytes {
		n, _ := strconv.Atoi(strings.TrimSpace(run(t, e, spec.ID, "df -m / | tail -n 1 | awk '{print $2}'")))
		return api.Bytes(n) * api.MiB
	}
	before := room()
	if before == 0 || before > spec.Root.Size {
		t.Fatalf("%s of %s", before, spec.Root.Size)
	}
	size := 4 * spec.Root.Size
	for range 2 { // again is no error
		if err := e.GrowRoot(t.Context(), spec.ID, size); err != nil {
			t.Fatal(err)
		}
	}
	if now := room(); now < size*7/10 {
		t.Errorf("%s of %s, %s before", now, size, before)
	}
	// It never gets smaller.
	if err := e.GrowRoot(t.Context(), spec.ID, spec.Root.Size); err != nil || room() < size*7/10 {
		t.Errorf("%s, %v", room(), err)
	}
	run(t, e, spec.ID, "dd if=/dev/zero of=/root/f bs=1M count="+strconv.Itoa(int(before/api.MiB)+5)+" 2>/dev/null")
}
