package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/qemu/qmp"
)

// oldest is the oldest QEMU that will do: that of the oldest distributions
// with a kernel that we run on.
var oldest = qmp.Version{Major: 6, Minor: 2}

// tools are the programs and files of the host.
type tools struct {
	dirs     []string // where programs are; a monitor sees /usr only
	firmware string   // descriptions of firmware

	mu       sync.Mutex
	versions map[string]known
}

// known is a program's version while its file is the same.
type known struct {
	file    os.FileInfo
	version qmp.Version
}

func newTools() *tools {
	return &tools{
		dirs:     []string{"/usr/bin", "/usr/local/bin"},
		firmware: firmwareDir,
		versions: map[string]known{},
	}
}

// find returns the program for an architecture, if it is new enough.
func (t *tools) find(ctx context.Context, a arch) (string, error) {
	for _, dir := range t.dirs {
		path := filepath.Join(dir, a.program)
		st, err := os.Stat(path)
		if err != nil {
			continue
		}
		v, err := t.version(ctx, path, st)
		if err != nil {
			return "", err
		}
		if !v.AtLeast(oldest.Major, oldest.Minor) {
			return "", api.Errorf(api.CodeUnsupported, "QEMU on this host (%s) is version %v, and %d.%d is needed", path, v, oldest.Major, oldest.Minor).
				WithHint("install a newer %s", a.pkg)
		}
		return path, nil
	}
	err := api.Errorf(api.CodeUnsupported, "this host has no QEMU for %s (%s)", a.name, a.program).WithHint("install the package %s", a.pkg)
	if a.name != runtime.GOARCH {
		err = err.WithField("spec.machine.arch")
	}
	return "", err
}

// versionLimit is how long a QEMU may take to say its version: 0.1 s, or half a
// minute on a host that has twenty times as much to do as it can.
const versionLimit = 2 * time.Minute

var versionRE = regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

// version asks a program for its version, once.
func (t *tools) version(ctx context.Context, path string, file os.FileInfo) (qmp.Version, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k, ok := t.versions[path]; ok && os.SameFile(k.file, file) && k.file.ModTime().Equal(file.ModTime()) {
		return k.version, nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionLimit)
	defer cancel()
	c := exec.CommandContext(ctx, path, "-version")
	c.Dir, c.Env, c.WaitDelay = "/", []string{}, time.Second
	out, err := c.Output()
	if ctx.Err() != nil {
		return qmp.Version{}, api.Errorf(api.CodeTimeout, "ask %s for its version: %w", path, ctx.Err()).WithHint("the host may be too busy; try again")
	}
	if err != nil {
		return qmp.Version{}, api.Errorf(api.CodeUnsupported, "QEMU on this host doesn't run: %s -version: %w", path, err).
			WithHint("install its package again")
	}
	m := versionRE.FindSubmatch(out)
	if m == nil {
		return qmp.Version{}, api.Errorf(api.CodeUnsupported, "%s is no QEMU", path)
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(string(m[i+1])) // a missing part is 0
	}
	v := qmp.Version{Major: n[0], Minor: n[1], Micro: n[2]}
	t.versions[path] = known{file, v}
	return v, nil
}

// describe names a program that find has found.
func (t *tools) describe(path string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintf("version %v (%s)", t.versions[path].version, path)
}

// roomForCPUs is how many virtual CPUs a machine should have room for.
func roomForCPUs() int { return min(runtime.NumCPU(), maxCPUs) }

// maxCPUs is how many virtual CPUs a machine can have.
const maxCPUs = 255
