package disk

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha1" // what manifests were made with; it guards against damage, not against people
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"hash"
	"io"
	"path"
	"regexp"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// isOVA tells whether a file begins as a tar archive whose first member is an
// OVF descriptor (DSP0243 §5.3).
func isOVA(head []byte) bool {
	return len(head) >= 512 && string(head[257:262]) == "ustar" && path.Ext(cString(head[:100])) == ".ovf"
}

const (
	maxMembers  = 256
	maxOVF      = 4 << 20
	maxManifest = 1 << 20
)

// member is where in the archive a file lies.
type member struct{ offset, length int64 }

// checkOVA finds the one disk of an OVA (DSP0243, Open Virtualization Format).
// Members are found by the names that the descriptor has for them, and no
// name is ever one of the host.
func checkOVA(ctx context.Context, f io.ReaderAt, size int64) (Header, error) {
	members, first, manifest, err := readMembers(f, size)
	if err != nil {
		return Header{}, err
	}
	at := members[first]
	text, err := read(f, size, at.offset, int(min(at.length, maxOVF+1)))
	if err != nil {
		return Header{}, err
	}
	if len(text) > maxOVF {
		return Header{}, corrupt("its descriptor has %d bytes", at.length)
	}
	name, firmware, err := readOVF(text)
	if err != nil {
		return Header{}, err
	}
	m, ok := members[name]
	if !ok {
		return Header{}, corrupt("its descriptor names %.200q, which isn't in the archive", name)
	}
	if manifest != "" {
		if err := checkManifest(ctx, f, members, manifest); err != nil {
			return Header{}, err
		}
	}
	inner := io.NewSectionReader(f, m.offset, m.length)
	format, err := detect(inner, m.length)
	if err != nil {
		return Header{}, err
	}
	if format == "ova" || format == "iso" {
		return Header{}, corrupt("what should be its disk, %.200q, is of format %s", name, format)
	}
	h, err := Check(ctx, inner, m.length, format)
	if err != nil {
		return Header{}, err
	}
	h.Offset, h.Firmware = m.offset, firmware
	return h, nil
}

// readMembers lists the files of the archive, and names its descriptor and
// manifest.
func readMembers(f io.ReaderAt, size int64) (members map[string]member, ovf, manifest string, err error) {
	members = map[string]member{}
	whole := io.NewSectionReader(f, 0, size)
	t := tar.NewReader(whole)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, "", "", corrupt("the archive is damaged: %w", err)
		}
		at, err := whole.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, "", "", err
		}
		_, twice := members[h.Name]
		switch {
		case h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "":
			return nil, "", "", corrupt("the archive's %.200q is no plain file", h.Name)
		case n == maxMembers:
			return nil, "", "", corrupt("the archive has more than %d files", maxMembers)
		case twice:
			return nil, "", "", corrupt("the archive has %.200q twice", h.Name)
		case h.Size > size-at:
			return nil, "", "", corrupt("it is cut off: %.200q should have %d bytes, and %d are there", h.Name, h.Size, size-at)
		}
		members[h.Name] = member{at, h.Size}
		switch path.Ext(h.Name) {
		case ".ovf":
			if ovf != "" {
				return nil, "", "", corrupt("the archive has two descriptors")
			}
			ovf = h.Name
		case ".mf":
			manifest = h.Name
		}
	}
	if ovf == "" {
		return nil, "", "", corrupt("the archive has no descriptor")
	}
	return members, ovf, manifest, nil
}

// envelope is the part of a descriptor that we need.
type envelope struct {
	XMLName xml.Name `xml:"Envelope"`
	Files   []struct {
		ID          string `xml:"id,attr"`
		Href        string `xml:"href,attr"`
		Compression string `xml:"compression,attr"`
		ChunkSize   string `xml:"chunkSize,attr"`
	} `xml:"References>File"`
	Disks []struct {
		FileRef string `xml:"fileRef,attr"`
		Parent  string `xml:"parentRef,attr"`
	} `xml:"DiskSection>Disk"`
	Systems []struct {
		Config []struct {
			Key   string `xml:"key,attr"`
			Value string `xml:"value,attr"`
		} `xml:"VirtualHardwareSection>Config"`
		Firmware struct {
			Type string `xml:"type,attr"`
		} `xml:"Machine>Hardware>Firmware"` // VirtualBox's own
	} `xml:"VirtualSystem"`
}

// readOVF returns the name of the file that is the machine's disk, and the
// firmware if the descriptor says so.
func readOVF(text []byte) (file, firmware string, err error) {
	var e envelope
	if err := xml.Unmarshal(text, &e); err != nil {
		return "", "", corrupt("its descriptor can't be read: %w", err)
	}
	if len(e.Systems) != 1 {
		return "", "", api.Errorf(api.CodeUnsupported, "it holds %d machines, and an image is one disk", len(e.Systems)).
			WithHint("unpack it with tar and import the disks one by one")
	}
	ref := ""
	for _, d := range e.Disks {
		switch {
		case d.FileRef == "": // an empty disk, to be made
			continue
		case d.Parent != "":
			return "", "", incomplete("the disk that it is a snapshot of")
		case ref != "":
			return "", "", api.Errorf(api.CodeUnsupported, "its machine has several disks, and an image is one").
				WithHint("unpack it with tar and import the disks one by one")
		}
		ref = d.FileRef
	}
	for _, f := range e.Files {
		if f.ID != ref || ref == "" {
			continue
		}
		if f.Compression != "" && f.Compression != "identity" || f.ChunkSize != "" {
			return "", "", api.Errorf(api.CodeUnsupported, "its disk is compressed or in pieces within the archive").
				WithHint("unpack it with tar, put the disk together and import that")
		}
		return f.Href, e.firmware(), nil
	}
	return "", "", corrupt("its descriptor names no file for its disk")
}

func (e *envelope) firmware() string {
	s := e.Systems[0]
	if strings.HasPrefix(strings.ToLower(s.Firmware.Type), "efi") {
		return "uefi"
	}
	for _, c := range s.Config {
		if c.Key != "firmware" {
			continue
		}
		if c.Value == "efi" {
			return "uefi"
		}
		return "bios"
	}
	return ""
}

// manifestLine is a checksum (DSP0243 §5.1).
var manifestLine = regexp.MustCompile(`^\s*(SHA1|SHA256|SHA512)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)\s*$`)

// checkManifest compares the checksums of all members that the manifest has
// one for.
func checkManifest(ctx context.Context, f io.ReaderAt, members map[string]member, manifest string) error {
	m := members[manifest]
	if m.length > maxManifest {
		return corrupt("its manifest has %d bytes", m.length)
	}
	text := make([]byte, m.length)
	if _, err := f.ReadAt(text, m.offset); err != nil && err != io.EOF {
		return err
	}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		line := manifestLine.FindStringSubmatch(lines.Text())
		if line == nil {
			continue
		}
		file, ok := members[line[2]]
		if !ok {
			return corrupt("its manifest names %.200q, which isn't in the archive", line[2])
		}
		sum := map[string]func() hash.Hash{"SHA1": sha1.New, "SHA256": sha256.New, "SHA512": sha512.New}[line[1]]()
		r := &cancelled{ctx, io.NewSectionReader(f, file.offset, file.length)}
		if _, err := io.CopyBuffer(sum, r, make([]byte, 1<<20)); err != nil {
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); got != strings.ToLower(line[3]) {
			return api.Errorf(api.CodeCorrupt, "%.200q has the %s %s, its manifest says %.128s", line[2], line[1], got, line[3]).
				WithHint("it was damaged on its way; fetch it again")
		}
	}
	return nil
}

// cancelled is a reader that ends with its context.
type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
