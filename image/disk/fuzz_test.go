package disk

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// FuzzCheck feeds every parser with changed files of all formats. What comes
// through must be within bounds.
func FuzzCheck(f *testing.F) {
	dir := f.TempDir()
	raw := filepath.Join(dir, "raw")
	b := make([]byte, 128<<10)
	b[0], b[510], b[511] = 1, 0x55, 0xaa
	if err := os.WriteFile(raw, b, 0o600); err != nil {
		f.Fatal(err)
	}
	f.Add(b, "")
	for _, args := range [][]string{
		{"qcow2"},
		{"qcow2", "-o", "compat=0.10"},
		{"qcow2", "-c", "-o", "extended_l2=on"},
		{"vmdk"},
		{"vmdk", "-o", "subformat=streamOptimized"},
		{"vhdx", "-o", "log_size=1M,block_size=1M"},
		{"vpc"},
		{"vdi"},
	} {
		out := filepath.Join(dir, "out")
		args = append(append([]string{"convert", "-f", "raw", "-O"}, args...), raw, out)
		if exec.Command("qemu-img", args...).Run() != nil {
			continue
		}
		b, err := os.ReadFile(out)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), 1<<20)], "")
	}
	f.Add(append(make([]byte, isoFirst), append([]byte("\x01CD001"), make([]byte, 4096)...)...), "iso")
	f.Fuzz(func(t *testing.T, b []byte, format string) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		h, err := Check(ctx, bytes.NewReader(b), int64(len(b)), format)
		if ctx.Err() != nil {
			t.Fatal("it took too long")
		}
		if err != nil {
			return
		}
		if h.Size <= 0 || h.Size > MaxSize || h.Offset < 0 || h.Length < 0 || h.Offset > int64(len(b))-h.Length {
			t.Errorf("%+v of %d bytes", h, len(b))
		}
		if h.Raw() {
			if _, err := Firmware(bytes.NewReader(b), h.Length); err != nil {
				t.Errorf("firmware: %v", err)
			}
		}
	})
}

func FuzzOVF(f *testing.F) {
	f.Add(ovf(`<File ovf:href="d.vmdk" ovf:id="f1"/>`, `<Disk ovf:fileRef="f1" ovf:diskId="d1"/>`, `<VirtualSystem/>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, firmware, err := readOVF(b)
		if err == nil && firmware != "" && firmware != "bios" && firmware != "uefi" {
			t.Errorf("firmware %q", firmware)
		}
	})
}
