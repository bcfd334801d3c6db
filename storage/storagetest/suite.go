// Package storagetest is the suite that every storage driver passes. It
// needs root. What it mounts and attaches is below directories of its own,
// and a test that leaves a mount or a loop device there fails.
package storagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage"
	"github.com/cleave-project/cleave/storage/internal/fsmount"
)

// Target is a driver under test. A member that is false excuses the driver
// from what it names.
type Target struct {
	Open func(context.Context, storage.Config) (storage.Driver, error)
	// Source makes an empty directory for a pool; a temporary one if nil.
	Source func(testing.TB) string
	// Shrinks: Resize takes less than the current size.
	Shrinks bool
	// GrowsInUse: Resize takes more while a guest uses the volume.
	GrowsInUse bool
}

// size is that of the suite's volumes: small, but with room for a file
// system of its own.
const size = 64 * api.MiB

// Run runs the suite.
func Run(t *testing.T, target Target) {
	if os.Geteuid() != 0 {
		t.Skip("pools need root: mounts, quotas and files of many owners")
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, Target)
	}{
		{"NewVolumeIsEmptyAndRootsOwn", testNewVolume},
		{"CreateAndDeleteAreIdempotent", testIdempotent},
		{"RefusesWhatIsNoID", testInvalidIDs},
		{"RefusesWhatIsNotThere", testMissing},
		{"DeleteRemovesHostileTrees", testHostileTree},
		{"CallsRunAtTheSameTime", testConcurrent},
		{"LimitStopsGuest", testLimit},
		{"ResizeMovesLimit", testResize},
		{"GuestOwnsItsFilesThroughIDMap", testIDMap},
		{"OverlayWorksOnVolume", testOverlay},
		{"KeepsExtendedAttributes", testXattrs},
		{"SurvivesRestart", testRestart},
		{"GuestKeepsRunningAcrossRestart", testRestartWithGuest},
		{"RefusesSecondDaemon", testSecondDaemon},
		{"DestroyRefusesVolumes", testDestroy},
		{"ReservedSpaceOutlivesFullDisk", testFullDisk},
		{"RefusesPoolOnFullDisk", testNoRoom},
		{"SurvivesKillWhileProvisioning", testKillOpen},
		{"SurvivesKillAmongCreatesAndDeletes", testKillChurn},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, target) })
	}
}

// place is where a pool may be made. When the test ends, nothing may be
// mounted or attached there any more.
func place(t testing.TB, target Target) storage.Config {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := storage.Config{Name: "pool", Source: filepath.Join(base, "source"), Run: filepath.Join(base, "run")}
	if target.Source != nil {
		c.Source = target.Source(t)
	}
	t.Cleanup(func() { checkLeaks(t, c) })
	return c
}

// checkLeaks fails the test for what it left, and removes it.
func checkLeaks(t testing.TB, c storage.Config) {
	mounts, err := fsmount.Under(c.Run)
	if err != nil {
		t.Error(err)
	}
	for point, m := range mounts {
		t.Errorf("leaked mount of %s at %s", m.Source, point)
		_ = unix.Unmount(point, unix.MNT_DETACH)
	}
	for _, file := range loopFiles(t) {
		if strings.HasPrefix(file, c.Source+"/") {
			t.Errorf("leaked loop device on %s", file)
		}
	}
}

// loopFiles names the files behind the host's loop devices.
func loopFiles(t testing.TB) []string {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil { // else detached meanwhile
			files = append(files, strings.TrimSpace(string(text)))
		}
	}
	return files
}

// open opens a pool until the test ends.
func open(t testing.TB, target Target, c storage.Config) storage.Driver {
	t.Helper()
	d, err := target.Open(t.Context(), c)
	if err != nil {
		t.Fatalf("open pool: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Unmount(context.Background()); err != nil && !api.IsCode(err, api.CodeUnavailable) {
			t.Errorf("unmount pool: %v", err)
		}
	})
	return d
}

func create(t testing.TB, d storage.Driver, id string, size api.Bytes) (path string) {
	t.Helper()
	if err := d.Create(t.Context(), id, size); err != nil {
		t.Fatalf("create volume %s: %v", id, err)
	}
	path, err := d.Path(t.Context(), id)
	if err != nil {
		t.Fatalf("path of volume %s: %v", id, err)
	}
	return path
}

func wantCode(t testing.TB, what string, err error, code api.Code) {
	t.Helper()
	if !api.IsCode(err, code) {
		t.Errorf("%s: got error %v, want one of code %s", what, err, code)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantFile(t testing.TB, path, text string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Errorf("%v", err)
	} else if string(got) != text {
		t.Errorf("%s holds %q, want %q", path, got, text)
	}
}

// Tmpfs mounts a small file system that can be filled up.
func Tmpfs(t testing.TB, size api.Bytes) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", int64(size))); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir
}

// Fill takes all that is left of dir's disk and returns a function that
// gives it back.
func Fill(t testing.TB, dir string) (free func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		switch err := unix.Fallocate(int(f.Fd()), 0, end, step); {
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case errors.Is(err, unix.EINTR): // a signal of the runtime
		case err != nil:
			t.Fatal(err)
		default:
			end += step
		}
	}
	return func() { os.Remove(f.Name()) }
}
