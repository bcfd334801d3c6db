package e2e

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/vmm/control"
)

//go:embed testdata/load-guest.sh
var loadGuestInit string

// stressVariable has the stress test of the monitor done, and multiplies what it
// does; stressPartVariable names the one part of it that is done
// (docs/maintaining.md).
const (
	stressVariable     = "CLEAVE_STRESS"
	stressPartVariable = "CLEAVE_STRESS_PART"
)

func stressed(n int) int {
	if by, err := strconv.Atoi(os.Getenv(stressVariable)); err == nil && by > 0 {
		n *= by
	}
	return n
}

// stressPatience is how long the monitor has for one request, and a restored
// one to listen: less than lab.Silence.
const stressPatience = 4 * time.Minute

// stressTold is how often a loop says how far it is.
const stressTold = 50

// TestMonitorUnderLoad has guests that change their memory, use disks and
// ports without a pause, and check what they read, on a host of the lab: over
// snapshots, clones, and devices that come and go.
func TestMonitorUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host under emulation")
	}
	if os.Getenv(stressVariable) == "" {
		t.Skipf("%s isn't set: under emulation a guest of this test is lost in every second run", stressVariable)
	}
	lab.Again(t, monitorUnderLoad)
}

func monitorUnderLoad(t testing.TB) {
	program := filepath.Join(t.TempDir(), "load")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./load")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files := map[string][]byte{"init": []byte(loadGuestInit)}
	for to, from := range map[string]string{"bin/busybox": "../bin/busybox", "bin/load": program} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Skipf("needs our programs: %v", err)
		}
		files[to] = b
	}
	kernel, initrd := lab.Guest(t, files)
	h := lab.Hosts(t, 1, lab.KVM, lab.CPUs(2), lab.Memory(2<<30), lab.File("cleave-vmm", "../bin/cleave-vmm"),
		lab.File("guest-kernel", kernel), lab.File("guest-initrd", initrd))[0]
	for _, part := range loadParts {
		if only := os.Getenv(stressPartVariable); only != "" && only != part.name {
			continue
		}
		// Each on its own: the emulation loses a guest of this test in every few.
		lab.Again(t, func(t testing.TB) {
			lab.Run(t, h, TestMonitorUnderLoadInside, stressVariable+"="+os.Getenv(stressVariable), stressPartVariable+"="+part.name)
		})
	}
}

// loadParts are what is done to a guest; the last one to have it returns it.
var loadParts = []struct {
	name string
	run  func(t *testing.T, g *loadGuest, dir, disk string) *loadGuest
}{
	{"ports", portsKeepWhatTheyCarry},
	{"disk", disksKeepWhatIsWritten},
	{"plugs", devicesComeAndGo},
	{"clones", clonesAreOthers},
	{"snapshots", snapshotsGoOn},
}

// TestMonitorUnderLoadInside is the half in the host.
func TestMonitorUnderLoadInside(t *testing.T) {
	lab.Inside(t)
	_ = exec.Command("modprobe", "kvm_amd").Run() // it may be another kind of processor
	dir, err := os.MkdirTemp("/dev/shm", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	runInHost(t, "modprobe", "tun")
	// A tap that stays while monitors come and go keeps its connections.
	runInHost(t, "ip", "tuntap", "add", "dev", "load0", "mode", "tap", "vnet_hdr")
	t.Cleanup(func() { runInHost(t, "ip", "link", "delete", "load0") })
	runInHost(t, "ip", "addr", "add", "10.98.0.1/24", "dev", "load0")
	runInHost(t, "ip", "link", "set", "load0", "up")
	disk := filepath.Join(dir, "disk")
	emptyDisk(t, disk)
	g := startLoad(t, dir, "--kernel", "/lab/guest-kernel", "--initrd", "/lab/guest-initrd", "--memory", "128MiB", "--cpus", "2",
		"--command", "console=ttyS0 quiet panic=-1 8250.nr_uarts=1", "--disk", disk+",queues=2", "--net", "load0,mac=02:00:00:00:98:02")
	g.wait(t, "load: ready")
	for _, part := range loadParts {
		if part.name == os.Getenv(stressPartVariable) {
			g = part.run(t, g, dir, disk)
		}
	}
	g.kill(t)
}

func emptyDisk(t *testing.T, name string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, 16<<20)); err != nil {
		t.Fatal(err)
	}
}

// loadGuest is a guest that runs the program load.
type loadGuest struct {
	*labGuest
	*control.Client
	in  io.Writer
	cmd *exec.Cmd
}

// startLoad starts or restores a guest and connects to its monitor.
func startLoad(t *testing.T, dir string, args ...string) *loadGuest {
	t.Helper()
	socket := filepath.Join(dir, fmt.Sprintf("s%d", rand.Uint32()))
	c := exec.CommandContext(t.Context(), "/lab/cleave-vmm", append(args, "--control", socket)...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	g := &loadGuest{labGuest: startGuest(t, c), in: in, cmd: c}
	deadline := time.After(stressPatience)
	for {
		if g.Client, err = control.Dial(t.Context(), socket); err == nil {
			return g
		}
		select {
		case end := <-g.ended:
			t.Fatalf("%v: the monitor ended: %v", err, end)
		case <-deadline:
			t.Fatalf("the monitor doesn't listen: %v", err)
		case <-time.After(5 * time.Millisecond): // nothing tells that it does
		}
	}
}

// ask has the guest do something, and returns its answer's words.
func (g *loadGuest) ask(t *testing.T, what string) []string {
	t.Helper()
	if _, err := io.WriteString(g.in, what+"\n"); err != nil {
		t.Fatal(err)
	}
	verb, _, _ := strings.Cut(what, " ")
	answer := g.wait(t, "load: "+verb+" ")
	if strings.HasPrefix(answer, "failed") {
		t.Fatalf("%s: %s", what, answer)
	}
	return strings.Fields(answer)
}

// check returns how often the guest has changed its memory, all of which has
// to be as it knows it.
func (g *loadGuest) check(t *testing.T) int {
	t.Helper()
	words := g.ask(t, "check")
	if len(words) != 2 || words[0] != "0" {
		t.Fatalf("wrong pages, and changes: %v", words)
	}
	n, err := strconv.Atoi(words[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// within has the monitor do something, with an end to its patience.
func within(t *testing.T, what string, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stressPatience)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func (g *loadGuest) kill(t *testing.T) {
	t.Helper()
	g.Close()
	if err := g.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	select {
	case <-g.ended:
	case <-time.After(stressPatience):
		t.Fatal("a monitor that was killed is still there")
	}
}

// uses are the private memory in KiB and the descriptors of a process and those
// below it.
func uses(t *testing.T, pid int) (kib, files int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	files = len(fds)
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		children, _ := os.ReadFile(list)
		for child := range strings.FieldsSeq(string(children)) {
			n, _ := strconv.Atoi(child)
			k, f := uses(t, n)
			kib, files = kib+k, files+f
		}
	}
	return kib, files
}
