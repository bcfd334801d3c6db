package vmm

import "time"

// throttle has the processors stand still for a share of the time.
type throttle struct {
	machine *Machine
	stop    chan struct{}
	done    chan struct{}
}

// slice is how long they run between two times that they stand still.
const slice = 10 * time.Millisecond

func (m *Machine) throttle(percent int) *throttle {
	t := &throttle{m, make(chan struct{}), make(chan struct{})}
	percent = min(percent, 99)
	still := slice * time.Duration(percent) / time.Duration(100-percent)
	go func() {
		defer close(t.done)
		defer m.gate.hold(false)
		for held := true; ; held = !held {
			m.gate.hold(held)
			wait := slice
			if held {
				wait = still
				for _, c := range m.cpus {
					c.kick()
				}
			}
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-t.stop:
				timer.Stop()
				return
			}
		}
	}()
	return t
}

func (t *throttle) end() {
	close(t.stop)
	<-t.done
}
