package vmm

import (
	"errors"
	"sync"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// rings are where KVM notes pages that processors have written, until somebody
// asks: what is in them is moved to bitmaps when one is full, too.
type rings struct {
	machine *Machine
	mu      sync.Mutex
	written pages // nil while nobody wants to know
	lost    error // what is in written isn't all
}

// begin notes what is written from now on, or ends that.
func (r *rings) begin(on bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written, r.lost = nil, nil
	err := r.collect() // of what was noted before
	if on {
		r.written = r.machine.newPages()
	}
	return err
}

// empty makes room in rings. What they have lost is for who asks: the guest
// goes on.
func (r *rings) empty() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.collect()
	if errors.Is(err, kvm.ErrRingLost) {
		r.lost = err
		return nil
	}
	return err
}

// take adds to p what was written since the last call.
func (r *rings) take(p pages) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := errors.Join(r.lost, r.collect()); err != nil || r.written == nil {
		return err
	}
	p.add(r.written)
	for _, bits := range r.written {
		clear(bits)
	}
	return nil
}

// collect moves what rings have to bitmaps, also if something is lost.
func (r *rings) collect() error {
	var errs []error
	for _, c := range r.machine.cpus {
		errs = append(errs, c.cpu.TakeDirty(func(slot uint32, page uint64) {
			if int(slot) < len(r.written) && page/64 < uint64(len(r.written[slot])) {
				r.written[slot][page/64] |= 1 << (page % 64)
			}
		}))
	}
	return errors.Join(append(errs, r.machine.vm.ResetRings())...)
}
