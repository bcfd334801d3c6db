package loop

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func makeFile(t *testing.T, size int64) *os.File {
	t.Helper()
	if _, err := os.Stat("/dev/loop-control"); err != nil || os.Geteuid() != 0 {
		t.Skipf("loop devices need root and /dev/loop-control (%v)", err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func attach(t *testing.T, f *os.File) *Device {
	t.Helper()
	d, err := Attach(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDeviceIsFoundByFileAndGoesWithItsLastUser(t *testing.T) {
	f := makeFile(t, 1<<20)
	d := attach(t, f)
	// The name is of no matter.
	if err := os.Rename(f.Name(), f.Name()+"-renamed"); err != nil {
		t.Fatal(err)
	}
	found, err := Find(f)
	if err != nil || found == nil || found.Path() != d.Path() {
		t.Fatalf("found %v (%v), want %s", found, err, d.Path())
	}
	found.Close()
	other := makeFile(t, 1<<20)
	if found, err := Find(other); err != nil || found != nil {
		t.Errorf("found %v (%v) for a file that is not attached", found, err)
	}
	if dev, err := Open(d.Path(), other); err != nil || dev != nil {
		t.Errorf("opened %s (%v) as the device of another file", d.Path(), err)
	}
	d.Close()
	if found, err := Find(f); err != nil || found != nil {
		t.Errorf("found %v (%v) after the last user has closed it", found, err)
	}
}

func TestDeviceGrowsWithFile(t *testing.T) {
	f := makeFile(t, 1<<20)
	d := attach(t, f)
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	if err := d.SetCapacity(); err != nil {
		t.Fatal(err)
	}
	if size, err := d.f.Seek(0, 2); err != nil || size != 3<<20 {
		t.Errorf("device has %d bytes (%v), want %d", size, err, 3<<20)
	}
}

func TestAttachFromManySides(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		f := makeFile(t, 1<<20)
		wg.Go(func() {
			for range 5 {
				d, err := Attach(t.Context(), f)
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
			}
		})
	}
	wg.Wait()
}

func TestOpenOfWhatIsNoLoopDevice(t *testing.T) {
	f := makeFile(t, 1<<20)
	for _, path := range []string{"", "/dev/null", "/dev/loop", "/dev/loopx", "/dev/loop999999"} {
		if d, err := Open(path, f); err != nil || d != nil {
			t.Errorf("%q: opened %v (%v), want nothing", path, d, err)
		}
	}
}
