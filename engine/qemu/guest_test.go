package qemu

import (
	"testing"
)

func TestImageBootsToItsEntryPoint(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "cat /proc/uptime; echo oops >&2; exit 3")
	startGuest(t, e, spec)
	st := waitExit(t, e, spec.ID)
	t.Logf("%+v\n%s", st, guestLog(e, spec.ID))
}
func TestPanicIsToldApart(t *testing.T) {
	e := newEngine(t)
	spec := imageSpec(t, "echo c > /proc/sysrq-trigger; sleep 100")
	startGuest(t, e, spec)
	st := waitExit(t, e, spec.ID)
	t.Logf("%+v\n%s", st, guestLog(e, spec.ID))
}
