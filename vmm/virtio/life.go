package virtio

// activate hands the queues to the device, whose driver is ready.
func (t *Transport) activate() {
	if t.status&statusFeaturesOK == 0 || t.life != idle {
		t.fail()
		return
	}
	queues := make([]*Queue, len(t.queues))
	for i := range t.queues {
		if !t.queues[i].Enabled {
			continue
		}
		var err error
		if queues[i], err = NewQueue(t.memory, t.config(i)); err != nil {
			t.fail()
			return
		}
	}
	t.live = queues
	t.begin()
}

// config is where the driver has put a queue.
func (t *Transport) config(n int) Config {
	q := &t.queues[n]
	return Config{
		Size: q.Size, Desc: q.Desc, Avail: q.Driver, Used: q.Device, EventIndex: t.features&FeatureEventIndex != 0,
	}
}

// begin lets the device work on its queues.
func (t *Transport) begin() {
	t.life = running
	var err error
	apart(func() { err = t.device.Activate(t.activation()) })
	if err != nil {
		t.life = paused
		t.fail()
	}
}

// apart calls f on another thread and waits for it: those of vCPUs, from which
// a driver's accesses come, may be allowed less of the kernel than what a
// device does when its life changes.
func apart(f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	<-done
}

func (t *Transport) activation() Activation {
	vectors := make([]uint16, len(t.queues))
	for i := range t.queues {
		vectors[i] = t.queues[i].Vector // which can't change while a driver is at work
	}
	return Activation{
		Memory: t.memory, Features: t.features, Queues: t.live, Kicks: t.kicks,
		Interrupt: func(n int) {
			if vectors[n] != noVector {
				t.msix.Raise(int(vectors[n]))
			}
		},
		ConfigChanged: t.changed,
		Fail:          func(error) { t.fail() },
	}
}

// fail stops the device until the driver resets it (2.1.2).
func (t *Transport) fail() {
	t.failed.Store(true)
	t.changed()
}

// changed tells the driver that the configuration, or the status, is another.
func (t *Transport) changed() {
	t.generation.Add(1)
	t.isr.Or(2)
	if v := t.configVector.Load(); v != noVector {
		t.msix.Raise(int(v))
	}
}

// reset is what the driver asks for by a status of zero (2.1).
func (t *Transport) reset() {
	if t.life != idle {
		apart(func() {
			if t.life == running {
				t.device.Pause()
			}
			t.device.Reset()
		})
	}
	t.clear()
}

// clear is what a reset leaves.
func (t *Transport) clear() {
	t.status, t.features = 0, 0
	t.deviceSelect, t.driverSelect, t.queueSelect = 0, 0, 0
	t.configVector.Store(noVector)
	t.isr.Store(0)
	t.life, t.live = idle, nil
	t.failed.Store(false)
	for i, size := range t.device.Queues() {
		t.queues[i] = queueRegisters{Size: size, Vector: noVector}
	}
}

// Pause has the device rest until Resume. No vCPU may run meanwhile.
func (t *Transport) Pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life == running {
		t.device.Pause()
		t.life = paused
	}
}

// Resume lets a device that was paused, or restored, go on.
func (t *Transport) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.life != paused || t.failed.Load() {
		return
	}
	t.begin()
	if t.restored {
		// An interrupt that was on its way to the processor when its state was
		// saved is in no state: the driver is told once more, for nothing at
		// worst.
		t.restored = false
		for i := range t.queues {
			if v := t.queues[i].Vector; t.queues[i].Enabled && v != noVector {
				t.msix.Raise(int(v))
			}
		}
	}
}

// Detach ends the device's work for good: it has left the machine.
func (t *Transport) Detach() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reset()
}
