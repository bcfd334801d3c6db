package keeper

// replaySize is what is kept of a terminal's output for those who attach.
const replaySize = 64 << 10

// ring keeps the last replaySize bytes written to it. It has no memory before
// there are any.
type ring struct {
	buf  []byte
	next int // once buf is full: the oldest byte, and the next to be replaced
}

func (r *ring) write(data []byte) {
	data = data[max(0, len(data)-replaySize):]
	n := min(len(data), replaySize-len(r.buf))
	r.buf = append(r.buf, data[:n]...)
	for data = data[n:]; len(data) > 0; data = data[n:] {
		n = copy(r.buf[r.next:], data)
		r.next = (r.next + n) % replaySize
	}
}

// bytes are the kept bytes in the order of their writing.
func (r *ring) bytes() []byte {
	return append(append(make([]byte, 0, len(r.buf)), r.buf[r.next:]...), r.buf[:r.next]...)
}
