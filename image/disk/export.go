package disk

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Export writes the raw disk from, which nobody writes to meanwhile, in one
// of ExportFormats. An OVA needs room in dir for its disk; nothing else does.
func Export(ctx context.Context, from *os.File, m Machine, format, dir string, w io.Writer) error {
	switch format {
	case "raw":
		_, err := io.CopyBuffer(w, &cancelled{ctx, io.NewSectionReader(from, 0, MaxSize)}, make([]byte, 1<<20))
		return err
	case "qcow2":
		return writeQcow2(ctx, from, w)
	case "ova":
		return writeOVA(ctx, from, m, dir, w)
	}
	return api.Errorf(api.CodeInvalid, "%.20q is no format that disks are exported to", format).WithField("format").
		WithHint("choose one of %s", strings.Join(ExportFormats, ", "))
}

//go:embed machine.ovf
var ovfText string

var ovfTemplate = template.Must(template.New("ovf").Funcs(template.FuncMap{"xml": escape}).Parse(ovfText))

// escape makes text safe in XML, in attributes as well.
func escape(s string) (string, error) {
	var b bytes.Buffer
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}

// unsafeInNames is what a file's name should not have.
var unsafeInNames = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// writeOVA writes descriptor, manifest and disk, in the order that DSP0243
// §5.3 asks for. The disk is stream-optimized, as others expect it; the
// archive names its length first, so it must be there as a file.
func writeOVA(ctx context.Context, from *os.File, m Machine, dir string, w io.Writer) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	name := strings.Trim(unsafeInNames.ReplaceAllString(m.Name, "-"), "-.")
	if name == "" {
		name = "disk"
	}
	disk, sum, err := compressed(ctx, from, name+"-disk1.vmdk", dir)
	if err != nil {
		return err
	}
	defer os.Remove(disk.Name())
	defer disk.Close()
	packed, err := disk.Stat()
	if err != nil {
		return err
	}
	var ovf bytes.Buffer
	err = ovfTemplate.Execute(&ovf, map[string]any{
		"Name": m.Name, "File": name + "-disk1.vmdk", "FileSize": packed.Size(), "Capacity": st.Size(),
		"CPUs": max(m.CPUs, 1), "MiB": max(int64(m.Memory)>>20, 128), "UEFI": m.Firmware == "uefi",
	})
	if err != nil {
		return err
	}
	ovfSum := sha256.Sum256(ovf.Bytes())
	manifest := fmt.Sprintf("SHA256(%s.ovf)= %s\nSHA256(%s-disk1.vmdk)= %s\n", name, hex.EncodeToString(ovfSum[:]), name, sum)

	t := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		size    int64
		content io.Reader
	}{
		{name + ".ovf", int64(ovf.Len()), &ovf},
		{name + ".mf", int64(len(manifest)), strings.NewReader(manifest)},
		{name + "-disk1.vmdk", packed.Size(), &cancelled{ctx, io.NewSectionReader(disk, 0, packed.Size())}},
	} {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: f.size, ModTime: time.Now().Truncate(time.Second), Format: tar.FormatUSTAR}
		if f.size >= 8<<30 {
			h.Format = tar.FormatGNU // sizes in base 256, which VMware reads too
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(t, f.content, make([]byte, 1<<20)); err != nil {
			return err
		}
	}
	return t.Close()
}

// compressed makes a vmdk of a raw disk.
func compressed(ctx context.Context, from *os.File, name, dir string) (_ *os.File, sum string, err error) {
	f, err := os.CreateTemp(dir, "vmdk-*")
	if err != nil {
		return nil, "", err
	}
	h := sha256.New()
	if err := writeVMDK(ctx, from, name, io.MultiWriter(f, h)); err != nil {
		os.Remove(f.Name())
		f.Close()
		return nil, "", err
	}
	return f, hex.EncodeToString(h.Sum(nil)), nil
}
