package lab

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab/appliance"
)

// insideVariable has the host's name in the environment of what Run runs.
const insideVariable = "CLEAVE_LAB_HOST"

// kernelVariable names a package with another kernel for the hosts of tests.
const kernelVariable = "CLEAVE_TEST_KERNEL"

// testProgram is the file that the running test is in a host.
const testProgram = "test"

// Hosts boots hosts for a test, named h1, h2 and so on, and ends them with
// it. It skips a test that is short, and where there is no emulator.
func Hosts(t testing.TB, n int, needs ...Need) []*Host {
	t.Helper()
	l := Start(t)
	own, err := testBinary(t)
	if err != nil {
		t.Fatalf("build the test for the hosts: %v", err)
	}
	specs := make([]Spec, n)
	for i := range specs {
		specs[i] = DefaultSpec(fmt.Sprintf("h%d", i+1))
		for _, need := range append([]Need{File(testProgram, own)}, needs...) {
			need(&specs[i])
		}
	}
	hosts, err := l.Add(specs...)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Boot(t.Context(), hosts...); err != nil {
		t.Fatal(err)
	}
	return hosts
}

// Start makes a lab without hosts for a test.
func Start(t testing.TB) *Lab {
	t.Helper()
	if os.Getenv(insideVariable) != "" {
		t.Fatal("a test that runs in a host of the lab starts hosts: its half there has lab.Inside")
	}
	if testing.Short() {
		t.Skip("boots hosts")
	}
	if err := Check(); err != nil {
		t.Skip(err)
	}
	o := appliance.Options{Tell: func(s string) { t.Log(s) }, Kernel: os.Getenv(kernelVariable)}
	var err error
	if o.Bin, err = builtPrograms(); err != nil {
		t.Skip(err)
	}
	o.Cache, o.Dir = Cache()
	img, err := appliance.Build(t.Context(), o)
	if err != nil {
		t.Skipf("needs an appliance: %v", err)
	}
	t.Cleanup(func() { img.Close() })
	dir, err := testDir()
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Options{Dir: dir, Image: img, Tell: func(s string) { t.Log(s) }})
	if err != nil {
		os.RemoveAll(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.Hosts() {
				t.Logf("%s is %s; its console ends with:\n%s", h.Name, h.State(), h.Tail(4<<10))
			}
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// testPrefix begins the names of directories of tests' labs.
const testPrefix = "cleave-lab-test-"

// testDir makes a directory for a lab, since a test's own may have too long a
// name for sockets, and removes those of tests that ended in a panic or were
// killed: their labs hold no lock any more.
func testDir() (string, error) {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), testPrefix+"*"))
	for _, dir := range old {
		if f, err := lockDir(dir, 0); err == nil {
			os.RemoveAll(dir)
			f.Close()
		}
	}
	return os.MkdirTemp("", testPrefix)
}

// Cache is where packages and kernels are kept, and images of the appliance:
// where CLEAVE_LAB_CACHE says, else with those of the other tests for root,
// else in the user's cache.
func Cache() (cache, images string) {
	cache = os.Getenv("CLEAVE_LAB_CACHE")
	if cache == "" && os.Geteuid() == 0 {
		cache = "/var/cache/cleave-test"
	}
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			user = os.TempDir()
		}
		cache = filepath.Join(user, "cleave-lab")
	}
	return cache, filepath.Join(cache, "appliance")
}

// builtPrograms finds bin/ of the module that this directory is in.
func builtPrograms() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == "/" {
			return "", errors.New("needs our programs: this directory is in no Go module")
		}
	}
	bin := filepath.Join(dir, "bin")
	if _, err := os.Stat(filepath.Join(bin, "cleaved")); err != nil {
		return "", fmt.Errorf("needs our programs: %w (make build)", err)
	}
	return bin, nil
}

// testBinary is the running test as a program that runs in a host: without
// the race detector, of which a host would be too slow.
func testBinary(t testing.TB) (string, error) {
	own, err := os.Executable()
	if err != nil {
		return "", err
	}
	if static(own) {
		return own, nil
	}
	return BuildTest(t, ".")
}

// BuildTest builds the tests of a package, named by its directory, to run in
// a host.
func BuildTest(t testing.TB, pkg string) (string, error) {
	dir, err := filepath.Abs(pkg)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(t.TempDir(), filepath.Base(dir)+".test")
	c := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", binary, ".")
	c.Dir, c.Env = dir, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go test -c: %w\n%s", err, out)
	}
	return binary, nil
}

func static(program string) bool {
	f, err := elf.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// Inside begins a half of a test that runs in a host: elsewhere it is skipped.
func Inside(t testing.TB) {
	t.Helper()
	if os.Getenv(insideVariable) == "" {
		t.Skip("the half of a test that runs in a host of the lab")
	}
	HoldKVM()
}

// createVM is KVM's request for a machine (KVM_CREATE_VM).
const createVM = 0xae01

// HoldKVM keeps an empty machine of KVM, where there is a KVM, until the process
// ends. With the first machine of a host, and the last one, Linux changes the
// code of its scheduler, and QEMU's emulation of a host may go round in circles
// in what it has translated before (docs/lab.md).
var HoldKVM = sync.OnceFunc(func() {
	if dev, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(dev), createVM, 0) // nothing closes it
	}
})

// InsideName is the name of the host that the test runs in, empty outside.
func InsideName() string { return os.Getenv(insideVariable) }

// Run runs a test function of this program in a host, with further variables
// of environment, KEY=VALUE. What it logs comes into the log of t, and
// that it fails, or skips, fails t.
func Run(t testing.TB, h *Host, half func(*testing.T), env ...string) {
	t.Helper()
	name := runtime.FuncForPC(reflect.ValueOf(half).Pointer()).Name()
	name = name[strings.LastIndexByte(name, '.')+1:]
	if !strings.HasPrefix(name, "Test") {
		t.Fatalf("%s is no test function at the top of a file, which a host could find by its name", name)
	}
	results := RunBinary(t, h, "/lab/"+testProgram, []string{"-test.run", "^" + name + "$"}, env...)
	if results.Status != 0 || results.Passed != 1 || results.Skipped > 0 {
		t.Errorf("%s in host %s: status %d, %d passed, %d skipped", name, h.Name, results.Status, results.Passed, results.Skipped)
	}
}

// Results are what a test program said in a host, of its top tests alone.
type Results struct {
	Status, Passed, Skipped, Failed int
}

// Silence is how long a test program may say nothing: how long all of it takes
// is up to the machine that plays the host.
const Silence = 6 * time.Minute

var resultLine = regexp.MustCompile(`^--- (PASS|SKIP|FAIL): `)

// RunBinary runs a test program in a host, verbosely.
func RunBinary(t testing.TB, h *Host, program string, args []string, env ...string) Results {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	hung := time.AfterFunc(Silence, func() {
		err := fmt.Errorf("it said nothing for %s", Silence)
		if !h.answers(ctx) {
			err = fmt.Errorf("%w, and %s", err, hostHangs)
		}
		cancel(err)
	})
	defer hung.Stop()
	r, w := io.Pipe()
	var results Results
	var reader sync.WaitGroup
	reader.Go(func() {
		for lines := bufio.NewReader(r); ; {
			line, err := lines.ReadString('\n')
			if line != "" {
				hung.Reset(Silence)
				t.Logf("%s: %s", h.Name, strings.TrimSuffix(line, "\n"))
				results.count(line)
			}
			if err != nil {
				return
			}
		}
	})
	request := api.ExecRequest{
		Command: append([]string{program, "-test.v", "-test.timeout=0"}, args...),
		Env:     append([]string{insideVariable + "=" + h.Name}, env...),
		WorkDir: filepath.Dir(program),
	}
	status, err := h.Exec(ctx, Command{ExecRequest: request, Stdout: w, Stderr: w})
	w.Close()
	reader.Wait()
	if err != nil {
		t.Fatalf("%v: %v", errors.Join(err, context.Cause(ctx)), request.Command)
	}
	results.Status = status
	return results
}

// hostHangs is what a host is said to do that executes nothing any more.
const hostHangs = "its host hangs"

// answers tells whether a host executes anything at all.
func (h *Host) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, err := h.Output(ctx, "true")
	return err == nil
}

func (r *Results) count(line string) {
	m := resultLine.FindStringSubmatch(line)
	if m == nil {
		return
	}
	switch m[1] {
	case "PASS":
		r.Passed++
	case "SKIP":
		r.Skipped++
	default:
		r.Failed++
	}
}
