package memory

import "testing"

func TestPiecesHaveTheirAddress(t *testing.T) {
	m, err := New(HoleStart+1<<20, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, at := range []uint64{0, 12345, HoleStart - 10, HoleEnd, HoleEnd + 1<<20 - 10} {
		b, err := m.Slice(at, 10)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := m.Address(b[3:]); !ok || got != at+3 {
			t.Errorf("%#x is told as %#x, %v", at+3, got, ok)
		}
	}
	if _, ok := m.Address(make([]byte, 10)); ok {
		t.Error("memory of others has an address")
	}
}
