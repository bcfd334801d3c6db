package kernel

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/cleave-project/cleave/image/compress"
)

// deb reads a Debian package (deb(5)): an ar archive of debian-binary,
// control.tar and data.tar, in this order, the two compressed in one of the
// ways that package compress knows.
type deb struct {
	Package, Version, Arch string

	r    io.Reader
	data io.ReadCloser // of the plain data.tar
	tar.Reader
}

const arMagic = "!<arch>\n"

var errNoDeb = errors.New("it is not a Debian package")

// openDeb reads a package as far as its files, which Next then yields.
func openDeb(r io.Reader) (*deb, error) {
	d := &deb{r: r}
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != arMagic {
		return nil, errNoDeb
	}
	for first := true; ; first = false {
		name, body, err := d.member()
		if err == io.EOF && !first {
			return nil, errors.New("it is a Debian package without files in it")
		}
		if err != nil || (first && name != "debian-binary") {
			return nil, errNoDeb
		}
		switch {
		case strings.HasPrefix(name, "control.tar"):
			if err := d.control(body); err != nil {
				return nil, fmt.Errorf("the package's control file: %w", err)
			}
		case strings.HasPrefix(name, "data.tar"):
			if d.data, _, err = compress.NewReader(body); err != nil {
				return nil, err
			}
			d.Reader = *tar.NewReader(d.data)
			return d, nil
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return nil, err
		}
	}
}

// member reads the header of the archive's next member. The body, with the
// byte that aligns it, must be read to its end before the next call.
func (d *deb) member() (string, io.Reader, error) {
	h := make([]byte, 60)
	if _, err := io.ReadFull(d.r, h); err != nil {
		return "", nil, err
	}
	size, err := strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 63)
	if err != nil || string(h[58:]) != "`\n" || size < 0 {
		return "", nil, errNoDeb
	}
	body := io.LimitReader(d.r, size+size&1)
	return strings.TrimRight(strings.TrimRight(string(h[:16]), " "), "/"), body, nil
}

// control reads name, version and architecture.
func (d *deb) control(body io.Reader) error {
	const maxControl = 1 << 20
	r, _, err := compress.NewReader(body)
	if err != nil {
		return err
	}
	defer r.Close()
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err != nil {
			return err
		}
		if strings.TrimPrefix(h.Name, "./") != "control" {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(t, maxControl))
		if err != nil {
			return err
		}
		for line := range bytes.Lines(b) {
			key, value, _ := strings.Cut(strings.TrimSpace(string(line)), ": ")
			switch key {
			case "Package":
				d.Package = value
			case "Version":
				d.Version = value
			case "Architecture":
				d.Arch = value
			}
		}
		return nil
	}
}

func (d *deb) Close() error { return d.data.Close() }
