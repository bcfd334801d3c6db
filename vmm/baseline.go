package vmm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// Baselines are what processors can be beside the host's own: the levels of
// the x86-64 psABI (3.1.1), so that a machine may go on with any host of that
// level.
const (
	BaselineHost = "host"
	BaselineV2   = "x86-64-v2"
	BaselineV3   = "x86-64-v3"
)

// word is one of the registers that CPUID answers with in features.
type word struct {
	leaf, index uint32
	register    int // 0 for EAX to 3 for EDX
}

// Words of features (SDM volume 2, CPUID; AMD volume 3, appendix E).
var (
	leaf1c   = word{1, 0, 2}
	leaf1d   = word{1, 0, 3}
	leaf7b   = word{7, 0, 1}
	leaf7c   = word{7, 0, 2}
	leaf7d   = word{7, 0, 3}
	leaf71a  = word{7, 1, 0}
	leafX0a  = word{0xd, 0, 0}
	leafX1a  = word{0xd, 1, 0}
	leafExtC = word{0x80000001, 0, 2}
	leafExtD = word{0x80000001, 0, 3}
	leafExt7 = word{0x80000007, 0, 3}
	leafExt8 = word{0x80000008, 0, 1}
)

// invariantTSC is the promise of leafExt7 that the time stamp counter keeps its
// pace. No baseline has it: hosts of one level have others.
const invariantTSC = 1 << 8

// features are the words of which a baseline keeps only its own bits.
var features = []word{leaf1c, leaf1d, leaf7b, leaf7c, leaf7d, leaf71a, leafX0a, leafX1a, leafExtC, leafExtD, leafExt7, leafExt8}

// level is a baseline: what the processor must have, and what it keeps where
// it is there, since programs don't ask for it but systems gain by it.
type level struct{ must, may map[word]uint32 }

func flags(n ...int) (v uint32) {
	for _, b := range n {
		v |= 1 << b
	}
	return v
}

// v2 has SSE4.2, POPCNT, CMPXCHG16B and LAHF; v3 AVX2, BMI, FMA, MOVBE too.
var v2 = level{
	must: map[word]uint32{
		leaf1c:   flags(0, 9, 13, 19, 20, 23),     // SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT
		leaf1d:   flags(0, 8, 15, 23, 24, 25, 26), // FPU CX8 CMOV MMX FXSR SSE SSE2
		leafExtC: flags(0),                        // LAHF
		leafExtD: flags(11, 29),                   // SYSCALL, long mode
	},
	may: map[word]uint32{
		leaf1c:   flags(1, 21, 24, 25, 30, 31), // PCLMUL x2APIC TSC-deadline AES RDRAND hypervisor
		leaf1d:   flags(1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 13, 14, 16, 17, 19, 28),
		leaf7b:   flags(0, 7, 9, 18, 20), // FSGSBASE SMEP ERMS RDSEED SMAP
		leaf7c:   flags(2),               // UMIP
		leaf7d:   flags(26, 27, 29, 31),  // what stands against speculation
		leafExtC: flags(4, 8),            // CR8, 3DNow prefetch
		leafExtD: flags(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 20, 23, 24, 25, 26, 27),
		leafExt8: flags(12, 14, 15, 24),
	},
}

var v3 = func() level {
	l := level{maps.Clone(v2.must), maps.Clone(v2.may)}
	l.must[leaf1c] |= flags(12, 22, 26, 28, 29) // FMA MOVBE XSAVE AVX F16C
	l.must[leaf7b] |= flags(3, 5, 8)            // BMI1 AVX2 BMI2
	l.must[leafExtC] |= flags(5)                // LZCNT
	l.must[leafX0a] = flags(0, 1, 2)            // state of x87, SSE and AVX
	l.may[leafX1a] = flags(0, 1, 2)             // XSAVEOPT XSAVEC XGETBV
	return l
}()

var levels = map[string]level{BaselineV2: v2, BaselineV3: v3}

// reduce leaves of what the host can what a baseline has.
func reduce(host []kvm.CPUIDEntry, baseline string) ([]kvm.CPUIDEntry, error) {
	if baseline == "" || baseline == BaselineHost {
		return host, nil
	}
	l, ok := levels[baseline]
	if !ok {
		return nil, fmt.Errorf("there is no processor %q; there are %s and %s", baseline, BaselineHost, strings.Join(slices.Sorted(maps.Keys(levels)), ", "))
	}
	out := slices.Clone(host)
	for _, w := range features {
		r := w.in(out)
		must := l.must[w]
		if r == nil && must == 0 {
			continue
		}
		if r == nil || *r&must != must {
			return nil, fmt.Errorf("this host's processor is no %s: it lacks bits %#x of CPUID leaf %#x", baseline, must, w.leaf)
		}
		*r &= must | l.may[w]
	}
	return out, nil
}

// covers tells whether a host can be what a processor was elsewhere.
func covers(host, want []kvm.CPUIDEntry) error {
	// OSXSAVE and OSPKE show what a system has turned on.
	shown := map[word]uint32{leaf1c: flags(27, 31), leaf7c: flags(4)}
	for _, w := range features {
		r := w.in(want)
		if r == nil {
			continue
		}
		has := uint32(0)
		if h := w.in(host); h != nil {
			has = *h
		}
		if missing := *r &^ has &^ shown[w]; w != leaf1d && missing != 0 || w == leaf1d && missing&^flags(28) != 0 {
			return fmt.Errorf("this host's processor lacks bits %#x of CPUID leaf %#x, which the machine was saved with", missing, w.leaf)
		}
	}
	return nil
}

// in is the register in a list of leaves, nil if there is none.
func (w word) in(list []kvm.CPUIDEntry) *uint32 {
	for i := range list {
		e := &list[i]
		if e.Function == w.leaf && (e.Flags&kvm.CPUIDIndexed == 0 || e.Index == w.index) {
			return [...]*uint32{&e.EAX, &e.EBX, &e.ECX, &e.EDX}[w.register]
		}
	}
	return nil
}
