package kernel

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// contents are the names of a package's files.
func contents(b []byte) (string, []string, error) {
	d, err := openDeb(bytes.NewReader(b))
	if err != nil {
		return "", nil, err
	}
	defer d.Close()
	var list []string
	for {
		h, err := d.Next()
		if err == io.EOF {
			return d.Package + " " + d.Version + " " + d.Arch, list, nil
		}
		if err != nil {
			return "", nil, err
		}
		if _, err := io.Copy(io.Discard, d); err != nil {
			return "", nil, err
		}
		list = append(list, h.Name)
	}
}

func TestPackagesAreReadInEveryCompression(t *testing.T) {
	control := tarOf(file{"control", []byte("Package: p\nVersion: 1\nArchitecture: amd64\n")})
	data := tarOf(file{"a", []byte("odd")}, file{"b", nil})
	for name, pack := range map[string]func([]byte) []byte{
		"": func(b []byte) []byte { return b }, ".gz": gzipOf, ".xz": xzOf, ".zst": zstdOf,
	} {
		b := arOf(file{"debian-binary", []byte("2.0\n")}, file{"_ignored", []byte("x")}, file{"control.tar" + name, pack(control)}, file{"data.tar" + name, pack(data)})
		what, files, err := contents(b)
		if err != nil || what != "p 1 amd64" || strings.Join(files, " ") != "./a ./b" {
			t.Errorf("data.tar%s: %q %v %v", name, what, files, err)
		}
	}
}

func TestDamagedPackagesAreErrors(t *testing.T) {
	whole := kernelDeb(testRelease)
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"magic only":      []byte(arMagic),
		"another archive": arOf(file{"x", []byte("y")}),
		"no data":         arOf(file{"debian-binary", []byte("2.0\n")}),
		"cut off":         whole[:len(whole)*3/4],
		"bad size":        []byte(arMagic + "debian-binary   0           0     0     100644  -4        `\n2.0\n"),
	} {
		if _, _, err := contents(b); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDeb(f *testing.F) {
	f.Add(debOf("p", file{"boot/vmlinuz-6.1", []byte("x")}))
	f.Add(arOf(file{"debian-binary", []byte("2.0\n")}, file{"data.tar.xz", xzOf(tarOf(file{"a", nil}))}))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if len(b) < 1<<20 {
			_, _, _ = contents(b)
		}
	})
}
