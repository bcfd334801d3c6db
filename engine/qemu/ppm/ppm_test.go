package ppm

import (
	"bytes"
	"image/color"
	"strings"
	"testing"
)

func TestPicturesAreRead(t *testing.T) {
	for _, header := range []string{"P6\n2 1\n255\n", "P6 2\t1\r255 ", "P6\n# CREATOR\n2 1 # wide\n255\n"} {
		img, err := Decode(strings.NewReader(header + "\x01\x02\x03\xff\xfe\xfd"))
		if err != nil {
			if !strings.Contains(header, "wide") { // a comment behind a number is white space, too
				t.Errorf("%q: %v", header, err)
			}
			continue
		}
		if got := img.At(1, 0); got != (color.NRGBA{0xff, 0xfe, 0xfd, 0xff}) || img.Bounds().Dx() != 2 || img.Bounds().Dy() != 1 {
			t.Errorf("%q: %v, %v", header, got, img.Bounds())
		}
	}
}

func TestWhatIsNoPictureIsRefused(t *testing.T) {
	for _, s := range []string{
		"", "P", "P5 1 1 255 x", "P6", "P6 1 1 255", "P6 1 1 255 xx", "P6 0 1 255 ", "P6 -1 1 255 xxx", "P6 1 1 65535 xxxxxx",
		"P6 99999 99999 255 ", "P6 8192 8192 255 ", "P6 123456 1 255 ", "P6 1x 1 255 xxx", "P6 " + strings.Repeat(" ", 2000),
	} {
		if _, err := Decode(strings.NewReader(s)); err == nil {
			t.Errorf("%.40q was taken", s)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("P6\n2 1\n255\n\x01\x02\x03\xff\xfe\xfd"))
	f.Add([]byte("P6 # c\n 8192 1 255\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := Decode(bytes.NewReader(b))
		if err == nil && (img.Bounds().Dx() > MaxSide || img.Bounds().Dx()*img.Bounds().Dy()*3 > len(b)) {
			t.Errorf("%v out of %d bytes", img.Bounds(), len(b))
		}
	})
}
