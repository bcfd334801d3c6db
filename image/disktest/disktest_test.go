package disktest

import (
	"os"
	"testing"

	"github.com/cleave-project/cleave/image/disk"
)

// That it boots is for e2e to see, by our own machines.
func TestDiskIsWhatOthersMake(t *testing.T) {
	f, err := os.Open(Debian(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := disk.Check(t.Context(), f, st.Size(), ""); err != nil || h.Format != "raw" {
		t.Errorf("%+v, %v", h, err)
	}
	if got, err := disk.Firmware(f, st.Size()); err != nil || got != "bios" {
		t.Errorf("firmware %q, %v", got, err)
	}
}
