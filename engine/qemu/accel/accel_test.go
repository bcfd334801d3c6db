package accel

import (
	"errors"
	"io/fs"
	"testing"
	"time"
)

func TestKVMIsMeasuredInTime(t *testing.T) {
	start := time.Now()
	speed, err := KVM()
	took := time.Since(start)
	t.Logf("%v, %v, in %v", speed, err, took)
	if err != nil && (errors.Is(err, ErrNoDevice) || errors.Is(err, fs.ErrPermission)) {
		t.Skip(err)
	}
	if err == nil && (speed <= 0 || speed > 1e12) {
		t.Errorf("%v is no speed", speed)
	}
	if took > 4*Limit {
		t.Errorf("it took %v", took)
	}
}

func TestTSCIsThatOfSomeProcessor(t *testing.T) {
	khz := TSC()
	t.Logf("%d kHz", khz)
	if khz < 500_000 || khz > 10_000_000 {
		t.Error("it is no frequency of a processor")
	}
	if TSC() != khz {
		t.Error("it changes")
	}
}

func BenchmarkKVM(b *testing.B) {
	for b.Loop() {
		if _, err := KVM(); err != nil {
			b.Skip(err)
		}
	}
}
