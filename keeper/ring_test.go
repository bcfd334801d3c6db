package keeper

import (
	"bytes"
	"testing"
)

func TestRingKeepsTheLastBytesInOrder(t *testing.T) {
	var r ring
	var all []byte
	for i, size := range []int{0, 1, 1000, replaySize - 1001, 1, 777, replaySize, 3 * replaySize, 12345, replaySize - 1} {
		piece := bytes.Repeat([]byte{byte('a' + i)}, size)
		all = append(all, piece...)
		r.write(piece)
		if want := all[max(0, len(all)-replaySize):]; !bytes.Equal(r.bytes(), want) {
			t.Errorf("after %d bytes: not the last %d", len(all), len(want))
		}
	}
}
