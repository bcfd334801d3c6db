package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

// hostFiles is a tar stream of about n bytes of what distributions ship: the
// programs and libraries of this host.
func hostFiles(b *testing.B, n int64) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, root := range []string{"/usr/share/doc", "/usr/share/perl", "/usr/bin", "/usr/sbin", "/usr/lib"} {
		start := int64(out.Len())
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || int64(out.Len()) >= n || int64(out.Len())-start > n/3 {
				return fs.SkipAll
			}
			info, err := d.Info()
			if err != nil || !info.Mode().IsRegular() || info.Size() > 16<<20 {
				return nil
			}
			body, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			h := &tar.Header{Name: path[1:], Mode: int64(info.Mode().Perm()), Size: int64(len(body)), ModTime: info.ModTime()}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			_, err = w.Write(body)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// gunzip is the measure: nothing but decompression.
func gunzip(b *testing.B, packed []byte) time.Duration {
	b.Helper()
	start := time.Now()
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		_, err = io.Copy(io.Discard, struct{ io.Reader }{z})
	}
	if err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkPull pulls an image of Debian's size from loopback, and reports
// how much longer that takes than decompressing its layers one after another
// in memory.
func BenchmarkPull(b *testing.B) {
	content := hostFiles(b, 160<<20)
	for name, parts := range map[string]int{"one-layer": 1, "four-layers": 4} {
		b.Run(name, func(b *testing.B) {
			var layers []layer
			for n := range parts {
				l := splitTar(b, content, n, parts)
				layers = append(layers, gzipped(b, l))
			}
			r := newRegistry(b)
			p := r.push("debian:size", layers)
			var bare time.Duration
			size := int64(0)
			b.ResetTimer()
			for range b.N {
				b.StopTimer()
				s := openStore(b)
				for _, l := range layers {
					bare += gunzip(b, l.packed)
					size += int64(len(l.tar))
				}
				b.StartTimer()
				if _, err := s.Pull(b.Context(), api.ImagePull{Reference: p.ref}, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(size)/1e6/b.Elapsed().Seconds(), "MB/s")
			b.ReportMetric(float64(size)/1e6/bare.Seconds(), "gunzip-MB/s")
			b.ReportMetric(b.Elapsed().Seconds()/bare.Seconds(), "x-gunzip")
		})
	}
}

// splitTar takes every parts-th file of a stream.
func splitTar(b *testing.B, content []byte, n, parts int) []byte {
	b.Helper()
	if parts == 1 {
		return content
	}
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(content)), tar.NewWriter(&out)
	for i := 0; ; i++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		if i%parts != n {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(w, r); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkSHA256 is the cost of verifying, for comparison.
func BenchmarkSHA256(b *testing.B) {
	p := make([]byte, 16<<20)
	b.SetBytes(int64(len(p)))
	for range b.N {
		sha256.Sum256(p)
	}
}

func BenchmarkBase(b *testing.B) {
	path := busybox(b)
	for range b.N {
		openStore(b, func(o *Options) { o.Busybox = path })
	}
}

func BenchmarkGet(b *testing.B) {
	s := openStore(b)
	importRoot(b, s, "debian:bookworm", "x")
	for b.Loop() {
		if _, err := s.Get(b.Context(), "debian:bookworm"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkList(b *testing.B) {
	s := openStore(b)
	for n := range 100 {
		if _, err := importBytes(b, s, imagetest.Tar(b, file{Name: "n", Body: fmt.Sprintf("%d", n)}), fmt.Sprintf("image:%d", n)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
