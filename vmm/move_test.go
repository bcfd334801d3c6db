package vmm

import (
	"testing"

	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/virtio/rng"
)

func TestAThrottledGuestGoesOnAndCanBePaused(t *testing.T) {
	said := make(signals)
	c := start(t, newMachine(t, counter(), said, Device{"rng0", rng.New()}), said, 1)
	v, err := c.StartMove()
	if err != nil {
		t.Fatal(err)
	}
	for _, percent := range []int{20, 90} {
		v.Throttle(percent)
		c.more(t)
		c.during(t, c.Pause)
		c.during(t, c.Resume)
		c.more(t)
	}
	v.End()
	c.more(t)
	c.stop()
}

// KVM answers for a processor only while that is out of the guest.
func TestAGuestThatOnlyCountsIsDescribedAtOnce(t *testing.T) {
	var c code
	c.driver()
	c.Increment(scratch)
	c.Copy8(serialPort, scratch)
	c.Jump(len(c.Code))
	said := make(signals)
	m := newMachine(t, c, said)
	ended := make(chan struct{})
	go func() { defer close(ended); m.mustRun(t) }()
	said.wait(t, 1)
	v, err := m.StartMove()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Description(); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
		t.Error("it has been stopped in the meantime")
	default:
	}
	v.End()
	m.Stop()
	<-ended
}

func TestAGuestOnItsWayIsLeftAlone(t *testing.T) {
	said := make(signals)
	c := start(t, newMachine(t, counter(), said), said, 1)
	c.more(t)
	v, err := c.StartMove()
	if err != nil {
		t.Fatal(err)
	}
	if c.Save(snapshotFiles(t), SaveOptions{}) == nil || c.Add(Device{"rng0", rng.New()}) == nil {
		t.Error("a snapshot or a device meanwhile")
	}
	if _, err := c.StartMove(); err == nil {
		t.Error("it is on two ways")
	}
	var state []byte
	c.during(t, func() (err error) { state, err = v.Freeze(); return err })
	if c.Resume() == nil || !c.Paused() {
		t.Error("a guest that is handed over goes on")
	}
	c.during(t, v.Thaw)
	c.more(t)
	v.End()
	c.stop()

	description, err := v.Description()
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Config{"cpus": {CPUs: 2, Memory: c.Memory()}, "memory": {CPUs: 1, Memory: 1 << 20}} {
		if _, err := Expect(host(t), o, description); err == nil {
			t.Errorf("%s: it is expected", name)
		}
	}
	for name, b := range map[string][]byte{"none": nil, "no JSON": []byte("x"), "cut short": state[:len(state)/2], "of nothing": []byte("{}")} {
		m, err := Expect(host(t), Config{CPUs: 1, Memory: c.Memory()}, description)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Arrive(b, nil); err == nil {
			t.Errorf("%s: it arrives", name)
		}
		m.Close()
	}
}

func TestOnlyAPromisedCounterKeepsAGuestFromHostsOfAnotherPace(t *testing.T) {
	m := newMachine(t, counter(), make(signals))
	c := m.cpus[0]
	now := c.tscKHz
	if now == 0 {
		t.Skip("needs a time stamp counter whose pace is known")
	}
	scales := c.cpu.SetTSCKHz(2*now) == nil
	for _, promised := range []uint32{0, invariantTSC} {
		c.tscKHz, c.cpuid = now, []kvm.CPUIDEntry{{Function: leafExt7.leaf, EDX: promised}}
		if err := c.setTSC(3 * now); (err == nil) != (scales || promised == 0) {
			t.Errorf("promised %#x, it can be scaled: %t: %v", promised, scales, err)
		}
	}
	if err := c.setTSC(0); err != nil {
		t.Errorf("a pace that nobody knew: %v", err)
	}
}
