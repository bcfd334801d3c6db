package vmm

import (
	"slices"
	"testing"

	"github.com/cleave-project/cleave/vmm/kvm"
)

// modern is a processor of level 3 with some of what came later.
func modern() []kvm.CPUIDEntry {
	return []kvm.CPUIDEntry{
		{Function: 1, ECX: 0xffffffff, EDX: 0xffffffff},
		{Function: 7, Flags: kvm.CPUIDIndexed, EBX: 0xffffffff, ECX: 0xffffffff, EDX: 0xffffffff},
		{Function: 0xd, Flags: kvm.CPUIDIndexed, EAX: 0xe7},
		{Function: 0xd, Index: 1, Flags: kvm.CPUIDIndexed, EAX: 0xf},
		{Function: 0x80000001, ECX: 0xffffffff, EDX: 0xffffffff},
		{Function: 0x80000007, EDX: invariantTSC},
	}
}

func TestABaselineHidesWhatCameLater(t *testing.T) {
	const avx512 = 1 << 16
	for _, name := range []string{BaselineV2, BaselineV3} {
		got, err := reduce(modern(), name)
		if err != nil {
			t.Fatal(err)
		}
		avx2 := *leaf7b.in(got)&(1<<5) != 0
		if *leaf7b.in(got)&avx512 != 0 || avx2 != (name == BaselineV3) || *leafX0a.in(got)&0xe0 != 0 || *leafExt7.in(got) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
		if err := covers(modern(), got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if covers(got, modern()) == nil {
			t.Errorf("%s is as good as all", name)
		}
	}
	if host := modern(); *leaf7b.in(host)&avx512 == 0 {
		t.Error("the host's leaves were changed")
	}
}

func TestAHostBelowTheBaselineIsRefused(t *testing.T) {
	old := modern()
	*leaf1c.in(old) &^= 1 << 23 // POPCNT
	if _, err := reduce(old, BaselineV2); err == nil {
		t.Error("it is taken")
	}
	if _, err := reduce(modern(), "x86-64-v9"); err == nil {
		t.Error("a processor that isn't there is taken")
	}
	if got, err := reduce(old, BaselineHost); err != nil || !slices.Equal(got, old) {
		t.Errorf("the host's own: %v", err)
	}
}
