package memory

import "unsafe"

// Address is where a piece is for the guest: one that Slice returned, or a
// part of that. ok is false for any other.
func (m *Memory) Address(b []byte) (addr uint64, ok bool) {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for i := range m.regions {
		r := &m.regions[i]
		from := uintptr(unsafe.Pointer(unsafe.SliceData(r.Host)))
		if at >= from && at-from < uintptr(len(r.Host)) && uintptr(len(b)) <= uintptr(len(r.Host))-(at-from) {
			return r.Guest + uint64(at-from), true
		}
	}
	return 0, false
}
