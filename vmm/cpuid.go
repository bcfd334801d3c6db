package vmm

import (
	"slices"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// cpuidFor is what a machine's processors answer.
func cpuidFor(sys *kvm.System, c Config) ([][]kvm.CPUIDEntry, error) {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	if supported, err = reduce(supported, c.CPU); err != nil {
		return nil, err
	}
	var out [][]kvm.CPUIDEntry
	for i := range c.CPUs {
		out = append(out, cpuidOf(supported, i, c.CPUs))
	}
	return out, nil
}

// cpuidOf is what processor id of n answers: what the host and KVM can do,
// with its own number where the leaves have one (SDM volume 2, CPUID).
func cpuidOf(supported []kvm.CPUIDEntry, id, n int) []kvm.CPUIDEntry {
	out := slices.Clone(supported)
	for i := range out {
		e := &out[i]
		switch e.Function {
		case 1:
			e.EBX = e.EBX&0x0000ffff | uint32(n)<<16 | uint32(id)<<24
			e.ECX |= 1 << 31 // a hypervisor is there
			if n > 1 {
				e.EDX |= 1 << 28 // EBX counts logical processors
			}
		case 4: // caches: shared by nobody
			e.EAX &= 0x00003fff
		case 0xb, 0x1f: // topology: one core per package level
			topology(e, id, n)
		case 0x8000001e: // AMD's own way to say it
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id), 0
		}
	}
	return out
}

// topology fills in a level of extended topology: threads, of which each
// core has one, then cores.
func topology(e *kvm.CPUIDEntry, id, n int) {
	bits := uint32(0)
	for 1<<bits < n {
		bits++
	}
	e.EDX = uint32(id)
	switch e.Index {
	case 0:
		e.EAX, e.EBX, e.ECX = 0, 1, 1<<8
	case 1:
		e.EAX, e.EBX, e.ECX = bits, uint32(n), 1|2<<8
	default:
		e.EAX, e.EBX, e.ECX = 0, 0, e.Index
	}
}
