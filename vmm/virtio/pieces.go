package virtio

// Length is how many bytes pieces have.
func Length(pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

// Pull fills p from the front of pieces and returns those that are left. A
// driver may cut a request wherever it likes (2.7.4.1). ok is false, and p not
// full, if there is less.
func Pull(pieces [][]byte, p []byte) (rest [][]byte, ok bool) {
	for len(p) > 0 && len(pieces) > 0 {
		n := copy(p, pieces[0])
		p, pieces[0] = p[n:], pieces[0][n:]
		if len(pieces[0]) == 0 {
			pieces = pieces[1:]
		}
	}
	return pieces, len(p) == 0
}

// Push writes p to the front of pieces and returns those that are left; what
// there is no room for is dropped, and ok false.
func Push(pieces [][]byte, p []byte) (rest [][]byte, ok bool) {
	for len(p) > 0 && len(pieces) > 0 {
		n := copy(pieces[0], p)
		p, pieces[0] = p[n:], pieces[0][n:]
		if len(pieces[0]) == 0 {
			pieces = pieces[1:]
		}
	}
	return pieces, len(p) == 0
}

// CutLast takes the last byte off pieces. ok is false if there is none.
func CutLast(pieces [][]byte) (rest [][]byte, last []byte, ok bool) {
	for i := len(pieces) - 1; i >= 0; i-- {
		if n := len(pieces[i]); n > 0 {
			last, pieces[i] = pieces[i][n-1:], pieces[i][:n-1]
			if n == 1 {
				i--
			}
			return pieces[:i+1], last, true
		}
	}
	return nil, nil, false
}
