package uml

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/machine"
	"github.com/cleave-project/cleave/engine/machine/jail"
)

// plan is that of a small application guest.
func plan(t *testing.T) *machine.Plan {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	for _, name := range []string{"linux.uml", "initrd"} {
		file(name)
	}
	return &machine.Plan{
		Spec: &engine.Spec{
			ID: "abcdefghij", UIDBase: 1 << 20, IDCount: 1 << 16, Proc: engine.Process{Args: []string{"true"}},
			Machine: &engine.Machine{
				Arch: runtime.GOARCH, CPUs: 1, Memory: 256 * api.MiB,
				Kernel: engine.Kernel{Name: "uml", Image: filepath.Join(dir, "linux.uml"), Initrd: filepath.Join(dir, "initrd")},
			},
		},
		Dir: dir, Image: file("image"), Root: file("root"), Control: file("control"),
	}
}

func TestCommandLine(t *testing.T) {
	nic := func(i byte) engine.NIC {
		return engine.NIC{Name: fmt.Sprintf("eth%d", i), MAC: net.HardwareAddr{2, 0, 0, 0, 0, i}}
	}
	for name, test := range map[string]struct {
		change func(t *testing.T, p *machine.Plan)
		has    []string // in this order
		hasNot []string
	}{
		"application": {
			func(*testing.T, *machine.Plan) {},
			[]string{
				"mem=256M", "initrd=/proc/self/fd/4",
				"ubd0rcd=/proc/self/fd/5,,image", "ubd1d=/proc/self/fd/6,,root", "ubd2d=/proc/self/fd/7,,control",
				"con=null", "con0=null", "console=tty0", "console=ttyS0", "ssl=null",
				"ssl0=null,fd:10", "ssl1=null,fd:11", "ssl2=null,fd:12", "ssl3=fd:8,fd:9",
				"umid=u", "quiet", "loglevel=1", "panic=-1", "cleave.disks=ubd",
			},
			[]string{"root=", "vec", "ubd3"},
		},
		"application on a terminal": {
			func(_ *testing.T, p *machine.Plan) { p.Proc.TTY = true },
			[]string{"ssl0=null,fd:10", "ssl1=fd:11", "ssl2=null", "ssl3=fd:8,fd:9", "loglevel=1"},
			nil,
		},
		"system": {
			func(_ *testing.T, p *machine.Plan) { p.System = true },
			[]string{"ssl0=fd:10", "ssl1=null", "ssl2=null", "ssl3=fd:8,fd:9", "loglevel=3"},
			nil,
		},
		"everything": {
			func(t *testing.T, p *machine.Plan) {
				more := plan(t)
				p.Modules, p.Volumes = more.Image, []*os.File{more.Root, more.Control}
				p.Mounts = []engine.Mount{{Disk: true}, {Disk: true, ReadOnly: true}}
				p.Disks, p.Machine.Disks = []*os.File{more.Image}, []engine.Disk{{ReadOnly: true}}
				p.NICs = []engine.NIC{nic(0), nic(1)}
				p.Machine.Kernel.Args = "  debug=1 foo "
			},
			[]string{
				"ubd0rcd=/proc/self/fd/5,,image", "ubd1d=/proc/self/fd/6,,root", "ubd2d=/proc/self/fd/7,,control", "ubd3rcd=/proc/self/fd/8,,modules",
				"ubd4d=/proc/self/fd/9,,volume-0", "ubd5rcd=/proc/self/fd/10,,volume-1", "ubd6rcd=/proc/self/fd/11,,disk-0", "ssl3=fd:12,fd:13",
				"vec0:transport=tap,ifname=wire0,mac=02:00:00:00:00:00,gro=1", "vec1:transport=tap,ifname=wire1,mac=02:00:00:00:00:01,gro=1",
				"cleave.disks=ubd", "debug=1", "foo",
			},
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := plan(t)
			test.change(t, p)
			c, err := (&monitor{again: "/usr/lib/agent"}).Command(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			at := 0
			for _, want := range test.has {
				i := indexFrom(c.Args, want, at)
				if i < 0 {
					t.Fatalf("no %q after %q in %q", want, c.Args[at], c.Args)
				}
				at = i
			}
			all := strings.Join(c.Args, " ")
			for _, not := range append(test.hasNot, p.Dir, filepath.Dir(c.Exe), filepath.Dir(p.Image.Name())) {
				if strings.Contains(all, not) {
					t.Errorf("%q in %s", not, all)
				}
			}
			// A reboot executes it again.
			if c.Args[0] != seenAgain || !jail.IsAgain(c.Args[1:]) || !strings.HasSuffix(c.Args[1], ":"+seenProgram) ||
				!cmp.Equal(c.Show[:2], []string{c.Exe, "/usr/lib/agent"}) || !c.Trace {
				t.Errorf("executed as %q, shown %q", c.Args[:2], c.Show)
			}
			links := map[string]string{seenProgram: c.Exe, seenAgain: "/usr/lib/agent", seenOwn: c.Write[0]}
			if diff := cmp.Diff(links, c.Links); diff != "" {
				t.Error(diff)
			}
			if tun := cmp.Equal(c.Devices, []string{"net/tun"}); tun != (len(p.NICs) > 0) {
				t.Errorf("devices %q", c.Devices)
			}
		})
	}
}

func indexFrom(args []string, want string, from int) int {
	for i := from; i < len(args); i++ {
		if args[i] == want {
			return i
		}
	}
	return -1
}

func TestCommandThatFailsKeepsNoDescriptors(t *testing.T) {
	p := plan(t)
	p.Machine.Kernel.Initrd = "/nowhere"
	if _, err := (&monitor{}).Command(t.Context(), p); err == nil {
		t.Error("made a command without an initramfs")
	}
	p = plan(t)
	open := descriptors(t)
	if err := os.WriteFile(filepath.Join(p.Dir, ownDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.Dir, agentOut), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := (&monitor{}).Command(t.Context(), p); err == nil {
		t.Error("made a command without FIFOs")
	}
	if now := descriptors(t); now > open {
		t.Errorf("%d descriptors are open, %d were", now, open)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestValidateNamesTheKindThatCan(t *testing.T) {
	for name, test := range map[string]struct {
		change func(s *engine.Spec)
		field  string
	}{
		"firmware":     {func(s *engine.Spec) { s.Machine.Kernel, s.Machine.Firmware.Type = engine.Kernel{}, "uefi" }, "spec.machine.firmware"},
		"TPM":          {func(s *engine.Spec) { s.Machine.Firmware.TPM = true }, "spec.machine.tpm"},
		"architecture": {func(s *engine.Spec) { s.Machine.Arch = "riscv64" }, "spec.machine.arch"},
		"two CPUs":     {func(s *engine.Spec) { s.Machine.CPUs = 2 }, "spec.resources.cpus"},
		"ISO":          {func(s *engine.Spec) { s.Machine.Disks = []engine.Disk{{CDROM: true}} }, "spec.machine.iso"},
		"saved memory": {func(s *engine.Spec) { s.Machine.Restore = "/file" }, "spec.machine"},
		"many disks":   {func(s *engine.Spec) { s.Mounts = make([]engine.Mount, 13) }, "spec.mounts"},
	} {
		s := plan(t).Spec
		if err := (&monitor{}).Validate(s); err != nil {
			t.Fatal(err)
		}
		test.change(s)
		e := api.AsError((&monitor{}).Validate(s))
		if e == nil || e.Code != api.CodeUnsupported || e.Field != test.field || !strings.Contains(e.Hint, "--kind vm") {
			t.Errorf("%s: %v", name, e)
		}
	}
	s := plan(t).Spec
	s.Machine.Memory = 16 * api.MiB
	if err := (&monitor{}).Validate(s); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("little memory: %v", err)
	}
}

func TestPanicIsAnAbortOfTheMonitor(t *testing.T) {
	for signal, want := range map[string]string{"SIGSYS": "panic", "SIGKILL": "", "": ""} {
		g := &machine.Guest{Exit: api.ExitStatus{Code: 1, Signal: signal}}
		if got := (&monitor{}).Ended(g).Reason; got != want {
			t.Errorf("%s: %q, want %q", signal, got, want)
		}
	}
}

func TestProbeMeasures(t *testing.T) {
	caps, findings := (&monitor{}).Probe(t.Context())
	if !caps.Available || caps.MaxCPUs != 1 || caps.Firmware || caps.Display || caps.Save {
		t.Errorf("capabilities %+v", caps)
	}
	for _, f := range findings {
		t.Logf("%s: %s: %s %s", f.Name, f.State, f.Detail, f.Remedy)
		if f.State != "ok" && f.Remedy == "" {
			t.Errorf("%s has no remedy", f.Name)
		}
	}
}

func TestProbeReadsWhatForbidsTracing(t *testing.T) {
	for content, available := range map[string]bool{"0\n": true, "1\n": true, "2\n": false, "3\n": false, "junk": true} {
		path := filepath.Join(t.TempDir(), "ptrace_scope")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r := &report{}
		probeYama(r, path)
		if (r.reason == nil) != available || !available && r.reason.Hint == "" {
			t.Errorf("%q: %v", content, r.reason)
		}
	}
	r := &report{}
	probeYama(r, "/nowhere")
	if r.reason != nil {
		t.Errorf("without Yama: %v", r.reason)
	}
}
