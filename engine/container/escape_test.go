package container

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

// withAdmin makes a guest as strong as any may be.
func withAdmin(spec *engine.Spec) *engine.Spec {
	spec.Security.AddCapabilities = []string{"SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "DAC_READ_SEARCH"}
	return spec
}

// both runs a script as an ordinary guest and as a strong one.
func both(t *testing.T, script string, check func(t *testing.T, e *Engine, out string)) {
	e := newEngine(t)
	for name, change := range map[string]func(*engine.Spec) *engine.Spec{
		"ordinary": func(s *engine.Spec) *engine.Spec { return s }, "SYS_ADMIN": withAdmin,
	} {
		t.Run(name, func(t *testing.T) {
			checkLeaks(t, e)
			out, _ := runGuest(t, e, change(guestSpec(t, script)))
			check(t, e, out)
		})
	}
}

// CVE-2019-5736: a guest overwrites the runtime's binary through
// /proc/PID/exe.
func TestGuestCannotOverwriteTheAgent(t *testing.T) {
	script := `
		for f in /proc/1/exe /proc/self/exe; do
			(echo pwned > $f) 2>&1 && echo OPENED $f
			dd if=/bin/busybox of=$f bs=1 count=1 conv=notrunc 2>/dev/null && [ $f = /proc/1/exe ] && echo OPENED $f
			chmod 777 /proc/1/exe 2>/dev/null
		done
		exec 5</proc/1/exe && (echo pwned > /proc/self/fd/5) 2>/dev/null && echo OPENED by descriptor
		printf '#!/proc/self/exe\n' > /tmp/x; chmod +x /tmp/x; /tmp/x; echo done`
	want, err := os.ReadFile(shared.agent)
	if err != nil {
		t.Fatal(err)
	}
	both(t, script, func(t *testing.T, e *Engine, out string) {
		if strings.Contains(out, "OPENED") || !strings.Contains(out, "done") {
			t.Errorf("output %q", out)
		}
		got := make([]byte, len(want)+1)
		n, _ := e.agent.ReadAt(got, 0)
		if !bytes.Equal(got[:n], want) {
			t.Error("the agent is not what it was")
		}
	})
}

// CVE-2024-21626: a descriptor of a host directory is left open, and the
// working directory or a path goes through it.
func TestGuestHasNoDescriptorOfTheHost(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	for fd := range 12 {
		spec := guestSpec(t, `ls -id . / /..; ls ..`)
		spec.Proc.WorkDir = fmt.Sprintf("/proc/self/fd/%d", fd)
		_, err := e.Start(t.Context(), spec)
		if err == nil {
			enginetest.WaitExit(t, e, spec.ID)
			t.Errorf("started in %s: %s", spec.Proc.WorkDir, enginetest.Log(t, e, spec.ID))
		}
		forget(t, e, spec.ID)
	}
	out, _ := runGuest(t, e, guestSpec(t, `
		for fd in /proc/1/fd/* /proc/self/fd/*; do [ -d $fd/ ] && echo DIRECTORY $fd; ls -l $fd; done
		[ "$(stat -c %i /)" = "$(stat -c %i /proc/..)" ] && [ "$(stat -c %i /)" = "$(stat -c %i /dev/../..)" ] && echo closed
		grep -c ' / / ' /proc/self/mountinfo`))
	if strings.Contains(out, "DIRECTORY") || !strings.Contains(out, "closed") {
		t.Errorf("output %q", out)
	}
}

// CVE-2025-31133 and CVE-2025-52881: what runtimes bind over procfs files, or
// write to procfs, is redirected by links in the image.
func TestKernelFilesStayCoveredWhateverTheImageHolds(t *testing.T) {
	e := newEngine(t)
	before := output(t, "cat", "/proc/sys/kernel/core_pattern")
	evil := imageOf(t, func(root string) {
		for _, d := range []string{"dev", "proc", "sys"} {
			os.MkdirAll(filepath.Join(root, d), 0o755)
		}
		symlink(t, "/proc/sys/kernel/core_pattern", filepath.Join(root, "dev/null"))
		symlink(t, "/proc", filepath.Join(root, "dev/pts"))
		symlink(t, "/proc/sysrq-trigger", filepath.Join(root, "dev/console"))
		symlink(t, "/proc/1", filepath.Join(root, "proc/self"))
		symlink(t, "/proc/sys/kernel", filepath.Join(root, "etc/hosts"))
	})
	for _, admin := range []bool{false, true} {
		t.Run(fmt.Sprint("admin=", admin), func(t *testing.T) {
			checkLeaks(t, e)
			spec := guestSpec(t, `
				for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/drop_caches /proc/sys/kernel/modprobe; do
					umount $f 2>/dev/null; umount /proc/sys 2>/dev/null; mount -o remount,rw /proc/sys 2>/dev/null
					(echo pwned > $f) 2>/dev/null && echo WRITTEN $f
				done
				mkdir /p; mount -t proc none /p 2>/dev/null && (echo pwned > /p/sys/kernel/core_pattern) 2>/dev/null && echo WRITTEN p
				for f in keys timer_list interrupts kcore; do [ -z "$(head -c 10 /proc/$f 2>/dev/null)" ] || echo READ $f; done
				test -c /dev/null && echo x > /dev/null && echo fine; cat /etc/hostname`)
			if admin {
				withAdmin(spec)
			}
			spec.Image, spec.Proc.TTY = evil, true
			out, _ := runGuest(t, e, spec)
			if strings.Contains(out, "WRITTEN") || strings.Contains(out, "READ") || !strings.Contains(out, "fine") {
				t.Errorf("output %q", out)
			}
		})
	}
	if after := output(t, "cat", "/proc/sys/kernel/core_pattern"); after != before {
		t.Errorf("core_pattern is %q", after)
	}
}

// CVE-2025-52565: the console is bound over a link to somewhere else.
func TestConsoleIsTheTerminalAndNothingElse(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, `test -c /dev/console && stat -c %t:%T /dev/console; grep -c core_pattern /proc/self/mountinfo; grep ' /dev/console ' /proc/self/mountinfo`)
	spec.Image = imageOf(t, func(root string) {
		os.MkdirAll(filepath.Join(root, "dev"), 0o755)
		symlink(t, "/proc/sys/kernel/core_pattern", filepath.Join(root, "dev/console"))
		symlink(t, "/proc/sys", filepath.Join(root, "dev/pts"))
	})
	spec.Proc.TTY = true
	out, _ := runGuest(t, e, spec)
	if !strings.HasPrefix(out, "88:") || !strings.Contains(out, "devpts") || !strings.Contains(out, "\n0\r\n") {
		t.Errorf("output %q", out)
	}
}

func TestLinksInTheImageLeadNowhereOnTheHost(t *testing.T) {
	e := newEngine(t)
	host := t.TempDir()
	write(t, filepath.Join(host, "program"), "#!/bin/sh\necho on the host\n")
	for _, dir := range []string{"proc", "sys", "dev"} {
		t.Run(dir, func(t *testing.T) {
			checkLeaks(t, e)
			spec := guestSpec(t, "true")
			spec.Image = imageOf(t, func(root string) { symlink(t, "../../.."+host, filepath.Join(root, dir)) })
			_, err := e.Start(t.Context(), spec)
			if !api.IsCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), "/"+dir) {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("etc", func(t *testing.T) {
		checkLeaks(t, e)
		spec := guestSpec(t, `cat /etc/hostname; ls -d `+host)
		spec.Hosts = "x\n"
		spec.Image = imageOf(t, func(root string) { symlink(t, "../../.."+host, filepath.Join(root, "etc")) })
		out, _ := runGuest(t, e, spec)
		if !strings.HasPrefix(out, "guest\n"+host) {
			t.Errorf("output %q", out)
		}
	})
	t.Run("entry point", func(t *testing.T) {
		checkLeaks(t, e)
		spec := guestSpec(t, "")
		spec.Proc.Args = []string{"/bin/start"}
		spec.Image = imageOf(t, func(root string) { symlink(t, host+"/program", filepath.Join(root, "bin/start")) })
		if _, err := e.Start(t.Context(), spec); !api.IsCode(err, api.CodeNotFound) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("volume target", func(t *testing.T) {
		checkLeaks(t, e)
		spec := guestSpec(t, `cat `+host+`/in/f`)
		vol := t.TempDir()
		write(t, filepath.Join(vol, "f"), "volume\n")
		spec.Mounts = []engine.Mount{{Source: vol, Target: "/link/in"}}
		spec.Image = imageOf(t, func(root string) {
			symlink(t, "../../.."+host, filepath.Join(root, "link"))
			os.MkdirAll(filepath.Join(root, host), 0o755)
		})
		if out, _ := runGuest(t, e, spec); out != "volume\n" {
			t.Errorf("output %q", out)
		}
	})
	es, err := os.ReadDir(host)
	if err != nil || len(es) != 1 {
		t.Errorf("the host's directory holds %v, error %v", es, err)
	}
}

func TestReadOnlyVolumeStaysSoForRootWithAllRights(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	vol := t.TempDir()
	write(t, filepath.Join(vol, "f"), "old")
	spec := withAdmin(guestSpec(t, `
		cat /ro/f
		mount -o remount,rw,bind /ro && echo REMOUNTED
		mkdir /b && mount --bind /ro /b && mount -o remount,rw,bind /b && echo REMOUNTED
		unshare -m sh -c 'mount -o remount,rw,bind /ro' && echo REMOUNTED
		echo new > /ro/f; touch /rw/x; umount /ro; ls /ro`))
	spec.Mounts = []engine.Mount{{Source: t.TempDir(), Target: "/rw"}, {Source: vol, Target: "/ro", ReadOnly: true}, {Source: t.TempDir(), Target: "/rw2"}}
	out, _ := runGuest(t, e, spec)
	b, _ := os.ReadFile(filepath.Join(vol, "f"))
	// Complaints come by another stream, and which is read first is chance.
	if string(b) != "old" || strings.Contains(out, "REMOUNTED") || !strings.Contains(out, "old") {
		t.Errorf("volume holds %q, output %q", b, out)
	}
	if _, err := os.Stat(filepath.Join(spec.Mounts[0].Source, "x")); err != nil {
		t.Error(err)
	}
}

func TestGuestCannotRaiseItsLimits(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := withAdmin(guestSpec(t, `
		for c in memory pids cpu; do
			mkdir -p /c/$c; mount -t cgroup -o $c none /c/$c 2>/dev/null || continue
			for f in memory.limit_in_bytes pids.max cpu.cfs_quota_us cgroup.procs; do
				(echo -1 > /c/$c/$f) 2>/dev/null && echo WRITTEN $c/$f
				(echo $$ > /c/$c/$f) 2>/dev/null && echo WRITTEN $c/$f
			done
			mkdir /c/$c/sub 2>/dev/null && echo MADE $c/sub
		done
		mkdir -p /c/2; mount -t cgroup2 none /c/2 2>/dev/null && for f in memory.max pids.max cpu.max io.max cgroup.max.descendants; do (echo max > /c/2/$f) 2>/dev/null && echo WRITTEN $f; done
		for f in /sys/fs/cgroup/*.max /sys/fs/cgroup/cgroup.*; do [ -e $f ] && (echo max > $f) 2>/dev/null && echo WRITTEN $f; done
		mount -o remount,rw /sys/fs/cgroup 2>/dev/null; mount -o remount,rw,bind /sys/fs/cgroup 2>/dev/null
		for f in /sys/fs/cgroup/*.max /sys/fs/cgroup/cgroup.*; do [ -e $f ] && (echo max > $f) 2>/dev/null && echo WRITTEN $f; done
		echo done`))
	spec.Resources = api.Resources{Memory: 64 * api.MiB, PIDs: 100, CPUs: 1}
	out, _ := runGuest(t, e, spec)
	if strings.Contains(out, "WRITTEN") || strings.Contains(out, "MADE") || !strings.Contains(out, "done") {
		t.Errorf("output %q", out)
	}
}

func TestDevicesOfTheHostAreOutOfReach(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := withAdmin(guestSpec(t, `
		mknod /tmp/sda b 254 0 && echo MADE
		mount -o remount,dev / ; mount -o remount,dev,bind /
		for f in /dev-sda /dev-kmsg /dev-mem; do head -c 1 $f > /dev/null 2>&1 && echo READ $f; done
		head -c 1 /dev/zero | wc -c; exit 0`))
	spec.Image = imageOf(t, func(root string) {
		output(t, "mknod", filepath.Join(root, "dev-sda"), "b", "254", "0")
		output(t, "mknod", filepath.Join(root, "dev-kmsg"), "c", "1", "11")
		output(t, "mknod", filepath.Join(root, "dev-mem"), "c", "1", "1")
	})
	out, _ := runGuest(t, e, spec)
	if strings.Contains(out, "READ") || strings.Contains(out, "MADE") || !strings.Contains(out, "1\n") {
		t.Errorf("output %q", out)
	}
}

// A group costs the host memory that the guest is not charged for. Version 2
// bounds their number; version 1 has no such bound.
func TestGuestMakesNoGroupsWithoutBound(t *testing.T) {
	script := `
		mkdir /tmp/g
		cut -d: -f2 /proc/self/cgroup | while read h; do
			case $h in ?*) mount -t cgroup -o none,$h x /tmp/g 2>/dev/null || mount -t cgroup -o $h x /tmp/g 2>/dev/null;; esac
			mkdir /tmp/g/evil 2>/dev/null && [ -e /tmp/g/evil/tasks ] && echo MADE in $h
			rmdir /tmp/g/evil 2>/dev/null; umount /tmp/g 2>/dev/null
		done
		mount -o remount,rw,bind /sys/fs/cgroup/systemd 2>/dev/null; mkdir /sys/fs/cgroup/systemd/evil 2>/dev/null && echo MADE
		echo done`
	both(t, script, func(t *testing.T, _ *Engine, out string) {
		if out != "done\n" {
			t.Errorf("output %q", out)
		}
	})
}

func TestOrdinaryGuestHasNoNamespacesToMake(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	out, _ := runGuest(t, e, guestSpec(t, `
		for o in -U -m -n -p -i -u; do unshare $o true 2>/dev/null && echo MADE $o; done
		mount -t tmpfs none /tmp 2>/dev/null && echo MOUNTED
		cat /proc/self/status | grep -E '^(CapEff|CapBnd|CapInh|CapAmb|Seccomp):'`))
	want := "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nSeccomp:\t2\n"
	if out != want {
		t.Errorf("output %q", out)
	}
}

func TestDroppedCapabilitiesAreGoneFromTheEntryPoint(t *testing.T) {
	e := newEngine(t)
	checkLeaks(t, e)
	spec := guestSpec(t, `id -u; cat /proc/self/status | grep -E '^(CapEff|CapPrm|CapBnd|NoNewPrivs):'; su -c id user 2>&1`)
	spec.Security = api.Security{DropCapabilities: []string{"ALL"}, NoNewPrivileges: true}
	out, _ := runGuest(t, e, spec)
	want := "0\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n"
	if !strings.HasPrefix(out, want) || strings.Contains(out, "uid=1000") {
		t.Errorf("output %q", out)
	}
	spec = guestSpec(t, `id -u; cat /proc/self/status | grep -E '^(CapEff|CapPrm):'`)
	spec.Security.DropCapabilities, spec.Proc.User = []string{"ALL"}, "user"
	if out, _ := runGuest(t, e, spec); out != "1000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n" {
		t.Errorf("output %q", out)
	}
}
