package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/engine/machine/jail"
	"github.com/cleave-project/cleave/engine/machine/vitals"
)

// The agent is built by TestMain; that its code is linked here too lets the
// test cache know when it changes.
var _ = jail.Main

var shared struct{ agent, keeper string }

// fakeGuest is an argument of the test binary with which it is a monitor, and
// the guest in it: it does as the words after it say to the control disk,
// which is descriptor 4.
const fakeGuest = "fake-guest"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == fakeGuest {
		os.Exit(pretend(os.Args[2:]))
	}
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "cleave-machine-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		if shared.agent, err = enginetest.Build(dir, "cleave-agent"); err != nil {
			return 1, err
		}
		if shared.keeper, err = enginetest.Build(dir, "cleave-keeper"); err != nil {
			return 1, err
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func pretend(words []string) int {
	disk := os.NewFile(4, "control")
	status := vitals.Status{Phase: vitals.PhaseBooting}
	for _, w := range words {
		verb, arg, _ := strings.Cut(w, "=")
		switch n, _ := strconv.Atoi(arg); verb {
		case "say":
			fmt.Println(arg)
		case "boots":
			status.Boots = n
		case "phase":
			status.Phase = vitals.Phase(arg)
		case "code":
			status.Exit.Code = n
		case "reason":
			status.Exit.Reason = arg
		case "missing":
			status.Error = api.Errorf(api.CodeNotFound, "%s: no such program", arg)
		case "write":
			if err := vitals.WriteStatus(disk, &status); err != nil {
				fmt.Println(err)
				return 99
			}
		case "exit":
			return n
		case "wait":
			select {}
		}
	}
	return 0
}

// fake is a Monitor whose monitor is a shell script or the test binary.
type fake struct {
	script  string
	gate    *os.File // descriptor 4 of the script
	pretend []string
	running func() error
	agent   func() (io.ReadWriteCloser, error)
}

var errNoAgent = api.Errorf(api.CodeUnavailable, "a fake guest has no agent")

func (f *fake) Name() string   { return "fake" }
func (f *fake) Kind() api.Kind { return api.KindVM }
func (f *fake) Probe(context.Context) (engine.Capabilities, []api.Finding) {
	return engine.Capabilities{Available: true}, nil
}
func (f *fake) Validate(*engine.Spec) error { return nil }
func (f *fake) Command(_ context.Context, p *Plan) (*Command, error) {
	if f.pretend != nil {
		exe, err := os.Executable()
		if err != nil {
			return nil, err
		}
		c := &Command{Exe: exe, Args: append([]string{"fake", fakeGuest}, f.pretend...), Show: []string{filepath.Dir(exe)}, Overhead: 64 * api.MiB}
		c.File(p.Control)
		return c, nil
	}
	c := &Command{Exe: "/usr/bin/busybox", Args: []string{"sh", "-c", f.script}, Env: []string{"PATH=/usr/bin"}, Overhead: 16 * api.MiB}
	if f.gate != nil {
		c.File(f.gate)
	}
	return c, nil
}

func (f *fake) Running(context.Context, *Guest) error {
	if f.running != nil {
		return f.running()
	}
	return nil
}

func (f *fake) Agent(context.Context, *Guest) (io.ReadWriteCloser, error) {
	if f.agent != nil {
		return f.agent()
	}
	return nil, errNoAgent
}
func (f *fake) Pause(context.Context, *Guest) error                 { return errors.ErrUnsupported }
func (f *fake) Resume(context.Context, *Guest) error                { return errors.ErrUnsupported }
func (f *fake) PowerButton(context.Context, *Guest) error           { return nil }
func (f *fake) Update(context.Context, *Guest, api.Resources) error { return nil }
func (f *fake) Ended(*Guest) api.ExitStatus                         { return api.ExitStatus{} }

// newEngine is an engine with a keeper of its own.
func newEngine(t *testing.T, m Monitor) *Engine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("machines are started by root")
	}
	for _, p := range []string{"/usr/bin/busybox", "/sbin/mkfs.ext4"} {
		if !exists(p) {
			t.Skipf("%s is not installed", p)
		}
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	e, err := New(m, enginetest.Options(t, dir, shared.agent, shared.keeper))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, _ := os.ReadDir(e.opts.Run)
		for _, d := range left {
			t.Errorf("%s is left in the runtime directory", d.Name())
		}
		e.Destroy()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, fd := range fds {
			to, _ := os.Readlink("/proc/self/fd/" + fd.Name())
			if strings.HasSuffix(to, ".img") || strings.HasPrefix(to, "/memfd:cleave-agent") || strings.HasPrefix(to, dir) {
				t.Errorf("descriptor %s of %s is left", fd.Name(), to)
			}
		}
	})
	return e
}

var serial atomic.Uint32

// ownSystem is a guest that boots by firmware.
func ownSystem(t *testing.T) *engine.Spec {
	n := serial.Add(1)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, engine.RootDisk), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return &engine.Spec{
		ID: "m" + strconv.Itoa(int(n)), Name: "machine", Hostname: "machine", Root: engine.Root{Dir: dir, Size: 4096},
		UIDBase: 3<<24 + n<<16, IDCount: 1 << 16,
		Machine: &engine.Machine{Arch: "amd64", CPUs: 1, Memory: 64 * api.MiB, Firmware: engine.Firmware{Type: "bios"}},
	}
}

// ofImage is a guest made of an image.
func ofImage(t *testing.T) *engine.Spec {
	s := ownSystem(t)
	if err := os.Remove(filepath.Join(s.Root.Dir, engine.RootDisk)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Root.Size, s.Image = 64*api.MiB, engine.Image{Digest: "sha256:x", EROFS: file}
	s.Machine.Firmware, s.Machine.Kernel = engine.Firmware{}, engine.Kernel{Name: "k", Image: file, Initrd: file}
	s.Proc.Args = []string{"/bin/sh"}
	return s
}

func start(t *testing.T, e *Engine, s *engine.Spec) *engine.Guest {
	t.Helper()
	g, err := e.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { forget(t, e, s.ID) })
	return g
}

func forget(t *testing.T, e *Engine, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := e.Forget(ctx, id); err != nil {
		t.Errorf("forget: %v", err)
	}
}

func exit(t *testing.T, e *Engine, id string) api.ExitStatus {
	t.Helper()
	select {
	case x := <-e.Exits():
		if x.ID != id {
			t.Fatalf("guest %s ended, not %s", x.ID, id)
		}
		return x.Status
	case <-time.After(60 * time.Second):
		t.Fatalf("guest %s doesn't end", id)
		return api.ExitStatus{}
	}
}

func TestEndsAreToldApart(t *testing.T) {
	for name, c := range map[string]struct {
		script  string
		pretend string
		want    api.ExitStatus
	}{
		"own system powers off":    {script: "read x <&4; exit 0", want: api.ExitStatus{Reason: "poweroff"}},
		"its monitor fails":        {script: "read x <&4; exit 3", want: api.ExitStatus{Code: 3, Reason: "crash"}},
		"entry point":              {pretend: "phase=running write phase=ended code=7 reason=exit write", want: api.ExitStatus{Code: 7, Reason: "exit"}},
		"entry point, then crash":  {pretend: "phase=ended code=7 write exit=1", want: api.ExitStatus{Code: 7, Reason: "exit"}},
		"panic":                    {pretend: "phase=running write exit=0", want: api.ExitStatus{Code: 255, Reason: "panic"}},
		"panic that the next says": {pretend: "phase=ended code=255 reason=panic write", want: api.ExitStatus{Code: 255, Reason: "panic"}},
		"crash":                    {pretend: "phase=running write exit=4", want: api.ExitStatus{Code: 4, Reason: "crash"}},
		"power-off in good order":  {pretend: "phase=ending write", want: api.ExitStatus{Reason: "poweroff"}},
	} {
		t.Run(name, func(t *testing.T) {
			// One that ends before Start has returned could not be started: the
			// scripts wait until it has.
			gate, opened, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer gate.Close()
			f, s := &fake{script: c.script, gate: gate}, ownSystem(t)
			if c.pretend != "" {
				f.pretend, s = strings.Fields(c.pretend), ofImage(t)
			}
			e := newEngine(t, f)
			start(t, e, s)
			if err := opened.Close(); err != nil {
				t.Fatal(err)
			}
			if got := exit(t, e, s.ID); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			gs, err := e.List(t.Context())
			if err != nil || len(gs) != 1 || gs[0].Running || gs[0].Exit == nil || *gs[0].Exit != c.want {
				t.Errorf("list %+v, error %v", gs, err)
			}
		})
	}
}

func TestKillIsToldFromCrash(t *testing.T) {
	for name, c := range map[string]struct {
		kill func(e *Engine, g *engine.Guest) error
		want api.ExitStatus
	}{
		"by us":     {func(e *Engine, g *engine.Guest) error { return e.Signal(context.Background(), g.ID, "SIGKILL") }, api.ExitStatus{Code: 137, Signal: "SIGKILL", Reason: "killed"}},
		"by others": {func(_ *Engine, g *engine.Guest) error { return kill(g.PID) }, api.ExitStatus{Code: 137, Signal: "SIGKILL", Reason: "crash"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t, &fake{script: "sleep 1000"})
			s := ownSystem(t)
			g := start(t, e, s)
			if err := c.kill(e, g); err != nil {
				t.Fatal(err)
			}
			if got := exit(t, e, s.ID); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
}

func kill(pid int) error {
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

func TestStartThatFailsSaysWhyAndLeavesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		pretend string
		change  func(*engine.Spec)
		code    api.Code
		text    string
	}{
		"program not in the image":  {pretend: "phase=ended missing=/bin/x write", code: api.CodeNotFound, text: "/bin/x"},
		"kernel that ends":          {pretend: "say=no-root-device exit=0", code: api.CodeInternal, text: "before the entry point"},
		"kernel that dies":          {pretend: "say=no-root-device exit=9", code: api.CodeInternal, text: "before the entry point"},
		"image that is gone":        {pretend: "wait", change: func(s *engine.Spec) { s.Image.EROFS += "-not" }, code: api.CodeInternal, text: "-not"},
		"volume that is a tree":     {change: func(s *engine.Spec) { s.Mounts = []engine.Mount{{Source: "/x", Target: "/y"}} }, code: api.CodeUnsupported, text: "tree"},
		"disk that is too small":    {change: func(s *engine.Spec) { s.Root.Size = 4096 }, code: api.CodeInvalid, text: "too small"},
		"medium that is gone":       {change: func(s *engine.Spec) { s.Machine.Disks = []engine.Disk{{ID: "cd", Path: "/no/iso"}} }, code: api.CodeNotFound, text: "/no/iso"},
		"more memory than there is": {change: func(s *engine.Spec) { s.Machine.Memory = 1 << 50 }, code: api.CodeNoResources, text: "memory"},
	} {
		t.Run(name, func(t *testing.T) {
			f, s := &fake{pretend: strings.Fields(c.pretend)}, ofImage(t)
			if c.change != nil {
				c.change(s)
			}
			e := newEngine(t, f)
			_, err := e.Start(t.Context(), s)
			if !strings.Contains(fmt.Sprint(err), c.text) || api.AsError(err).Code != c.code {
				t.Errorf("error %v, want %s", err, c.code)
			}
			if strings.Contains(c.pretend, "say=") && !strings.Contains(api.AsError(err).Hint, "no-root-device") {
				t.Errorf("hint %q", api.AsError(err).Hint)
			}
			if gs, err := e.List(t.Context()); err != nil || len(gs) != 0 {
				t.Errorf("list %v, error %v", gs, err)
			}
			forget(t, e, s.ID)
		})
	}
}

func TestRootDiskIsMadeOnceAndKept(t *testing.T) {
	e := newEngine(t, &fake{pretend: strings.Fields("phase=ended write")})
	s := ofImage(t)
	vol := t.TempDir()
	s.Mounts = []engine.Mount{{Source: vol, Target: "/data", Disk: true, Size: 32 * api.MiB}}
	start(t, e, s)
	exit(t, e, s.ID)
	forget(t, e, s.ID)
	for path, want := range map[string]string{filepath.Join(s.Root.Dir, engine.RootDisk): "upper", filepath.Join(vol, engine.VolumeDisk): "lost+found"} {
		if out, err := exec.Command("/sbin/e2fsck", "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		out, err := exec.Command("/sbin/debugfs", "-R", "ls /", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s: %s, error %v", path, out, err)
		}
	}
	disk := filepath.Join(s.Root.Dir, engine.RootDisk)
	before, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	// What a start that was cut short left, and a disk that is to grow.
	if err := os.WriteFile(disk+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Root.Size = 128 * api.MiB
	start(t, e, s)
	exit(t, e, s.ID)
	after, err := os.Stat(disk)
	if err != nil || !os.SameFile(before, after) || after.Size() != 128<<20 {
		t.Errorf("%v, %v, error %v", before, after, err)
	}
}

func TestEndIsKnownThatNobodySaw(t *testing.T) {
	e := newEngine(t, &fake{pretend: strings.Fields("phase=ended code=5 write wait")})
	s := ofImage(t)
	// It has ended as far as it says; its monitor is killed while no daemon
	// looks.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := e.Start(ctx, s); err == nil {
		t.Fatal("started")
	}
	f := &fake{script: "read x; exit 0"}
	s = ownSystem(t)
	e.monitor = f
	g := start(t, e, s)
	e.book.Close()
	if err := kill(g.PID); err != nil {
		t.Fatal(err)
	}
	again, err := New(e.monitor, e.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		gs, err := again.List(t.Context())
		if err != nil || len(gs) != 1 {
			t.Fatalf("list %v, error %v", gs, err)
		}
		if !gs[0].Running {
			if want := (api.ExitStatus{Code: 137, Signal: "SIGKILL", Reason: "crash"}); *gs[0].Exit != want {
				t.Errorf("exit %+v", gs[0].Exit)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it runs on")
		}
	}
}

func TestPauseFreezesWhatCannotPause(t *testing.T) {
	e := newEngine(t, &fake{script: "while :; do :; done"})
	s := ownSystem(t)
	start(t, e, s)
	if err := e.Pause(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	cpu := func() uint64 {
		st, err := e.Stats(t.Context(), s.ID)
		if err != nil {
			t.Fatal(err)
		}
		return st.CPUNanos
	}
	before := cpu()
	time.Sleep(20 * time.Millisecond)
	if after := cpu(); after-before > uint64(5*time.Millisecond) {
		t.Errorf("a paused guest used %d ns", after-before)
	}
	if err := e.Resume(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); cpu() == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it doesn't go on")
		}
	}
	if _, err := e.Agent(t.Context(), s.ID); !api.IsCode(err, api.CodeUnavailable) {
		t.Errorf("error %v", err)
	}
	if err := e.Signal(t.Context(), s.ID, "SIGTERM"); err != nil { // its power button
		t.Error(err)
	}
}

func TestCallsForAGuestThatIsNotThereSaySo(t *testing.T) {
	e := newEngine(t, &fake{})
	for name, err := range map[string]error{
		"signal": e.Signal(t.Context(), "nobody", "SIGTERM"),
		"kill":   e.Signal(t.Context(), "nobody", "SIGKILL"),
		"pause":  e.Pause(t.Context(), "nobody"),
		"resume": e.Resume(t.Context(), "nobody"),
		"update": e.Update(t.Context(), "nobody", api.Resources{}, ""),
		"stats":  func() error { _, err := e.Stats(t.Context(), "nobody"); return err }(),
		"agent":  func() error { _, err := e.Agent(t.Context(), "nobody"); return err }(),
		"look":   func() error { _, err := e.Inspect(t.Context(), "nobody"); return err }(),
	} {
		if !api.IsCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if err := errors.Join(e.Clean(t.Context(), "nobody"), e.Forget(t.Context(), "nobody")); err != nil {
		t.Error(err)
	}
}
