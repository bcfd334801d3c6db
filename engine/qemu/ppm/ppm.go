// Package ppm reads pictures as QEMU writes them: binary PPM (ppm(5), type
// P6) with eight bits a colour. They come from a process that the guest may
// have taken over.
package ppm

import (
	"bufio"
	"errors"
	"fmt"
	"image"
	"io"
)

// MaxSide is how wide or high a picture may be, and MaxSize how long its file.
const (
	MaxSide = 8192
	MaxSize = 64<<20 + 64
)

// Decode reads a picture.
func Decode(r io.Reader) (image.Image, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	var magic [2]byte
	if _, err := io.ReadFull(b, magic[:]); err != nil || string(magic[:]) != "P6" {
		return nil, errors.New("it is no PPM")
	}
	var n [3]int // width, height, greatest value
	for i := range n {
		var err error
		if n[i], err = number(b); err != nil {
			return nil, err
		}
	}
	if n[0] < 1 || n[1] < 1 || n[0] > MaxSide || n[1] > MaxSide || n[0]*n[1]*3 > MaxSize || n[2] != 255 {
		return nil, fmt.Errorf("a PPM of %d by %d points with %d values is not taken", n[0], n[1], n[2])
	}
	// A row after the other, so that a short file takes no memory.
	img := &image.NRGBA{Stride: 4 * n[0], Rect: image.Rect(0, 0, n[0], n[1])}
	row := make([]byte, 3*n[0])
	for range n[1] {
		if _, err := io.ReadFull(b, row); err != nil {
			return nil, errors.New("the PPM is cut short")
		}
		for p := row; len(p) > 0; p = p[3:] {
			img.Pix = append(img.Pix, p[0], p[1], p[2], 0xff)
		}
	}
	return img, nil
}

// number reads white space, with comments in it, and a number, and the one
// character behind.
func number(b *bufio.Reader) (int, error) {
	const digits = 5
	n, seen, comment := 0, 0, false
	for range 1024 {
		c, err := b.ReadByte()
		if err != nil {
			return 0, errors.New("the PPM is cut short")
		}
		switch space := c == ' ' || c == '\n' || c == '\t' || c == '\r'; {
		case comment:
			comment = c != '\n'
		case c >= '0' && c <= '9' && seen < digits:
			n, seen = 10*n+int(c-'0'), seen+1
		case space && seen > 0:
			return n, nil
		case c == '#' && seen == 0:
			comment = true
		case !space:
			return 0, fmt.Errorf("the PPM has %q in a number", c)
		}
	}
	return 0, errors.New("the PPM has no end to its header")
}
