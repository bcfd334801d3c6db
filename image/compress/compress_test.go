package compress

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func pack(t testing.TB, f Format, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch f {
	case Gzip:
		w = gzip.NewWriter(&b)
	case Zstd:
		w, err = zstd.NewWriter(&b)
	case XZ:
		w, err = xz.NewWriter(&b)
	default:
		return p
	}
	if err == nil {
		_, err = w.Write(p)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpack(p []byte) ([]byte, Format, error) {
	rc, f, err := NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, f, err
	}
	defer rc.Close()
	a := NewAhead(rc, nil)
	defer a.Close()
	out, err := io.ReadAll(a)
	return out, f, err
}

func TestReaderFindsTheFormat(t *testing.T) {
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 7} {
		plain := bytes.Repeat([]byte("all work and no play "), size/20+1)[:size]
		for _, f := range []Format{None, Gzip, Zstd, XZ} {
			got, format, err := unpack(pack(t, f, plain))
			if err != nil || !bytes.Equal(got, plain) || format != f && !(size == 0 && f == Zstd) {
				t.Errorf("%q of %d bytes: %d bytes, %q, %v", f, size, len(got), format, err)
			}
		}
	}
}

func TestReaderReportsTruncation(t *testing.T) {
	plain := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	for _, f := range []Format{Gzip, Zstd, XZ} {
		p := pack(t, f, plain)
		if _, _, err := unpack(p[:len(p)-5]); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: cut off stream gave %v", f, err)
		}
	}
}

func TestReaderRefusesHugeDictionary(t *testing.T) {
	p := pack(t, XZ, []byte("x"))
	// Byte 12: block header size; 13: flags; 14: filter; 15: 1; 16: dictionary.
	p[16] = 40
	if _, _, err := NewReader(bytes.NewReader(p)); err == nil {
		t.Error("a 4 GiB dictionary was accepted")
	}
}

func TestAheadClosesInTheMiddle(t *testing.T) {
	a := NewAhead(endless{}, nil)
	if _, err := io.ReadFull(a, make([]byte, 3*chunkSize)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	a.Close()
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func FuzzReader(f *testing.F) {
	for _, format := range []Format{None, Gzip, Zstd, XZ} {
		f.Add(pack(f, format, []byte("seed")))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		rc, _, err := NewReader(bytes.NewReader(p))
		if err != nil {
			return
		}
		defer rc.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(rc, 1<<20))
	})
}
