package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab/wire"
)

// TestHosts boots two hosts, the second with KVM, and does to them what a lab
// can do. It is one test, since every boot takes some seconds.
func TestHosts(t *testing.T) {
	hosts := Hosts(t, 2, func(s *Spec) { s.KVM = s.Name == "h2" })
	h, other := hosts[0], hosts[1]
	t.Run("commands have their exit status", func(t *testing.T) { commands(t, h) })
	t.Run("a half of a test runs inside", func(t *testing.T) {
		Run(t, h, TestInsideIsAHost, "WANT_HOST=h1")
		if api.AsError(other.Boot(t.Context())).Code != api.CodeConflict {
			t.Error("a host that runs was started once more")
		}
	})
	t.Run("a host that asks for it has KVM", func(t *testing.T) {
		if _, err := other.Output(t.Context(), "test", "-c", "/dev/kvm"); err != nil {
			t.Error(err)
		}
		if _, err := h.Output(t.Context(), "test", "-c", "/dev/kvm"); err == nil && !accelerator() {
			t.Error("one that doesn't has it, too")
		}
	})
	t.Run("links are cut one way and both, delayed and healed", func(t *testing.T) { links(t, h, other) })
	t.Run("a pause stops its time", func(t *testing.T) { pause(t, h, other) })
	t.Run("power loss drops what was not flushed", func(t *testing.T) { power(t, h) })
}

// TestHostThatHangsIsStartedOnceMore has a host hang as one does whose
// processor waits for an interrupt that never comes.
func TestHostThatHangsIsStartedOnceMore(t *testing.T) {
	l := Start(t)
	hosts, err := l.Add(DefaultSpec("h1"))
	if err != nil {
		t.Fatal(err)
	}
	h := hosts[0]
	var tries []int
	hang := func(upTo int) func(*Host, int) {
		tries = nil
		return func(h *Host, try int) {
			tries = append(tries, try)
			if l.stall = noProgress; try > upTo {
				return
			}
			l.stall = 2 * time.Second
			if err := h.Pause(); err != nil {
				t.Error(err)
			}
		}
	}
	l.started = hang(2)
	err = h.Boot(t.Context())
	if !errors.Is(err, errHung) || len(tries) != 2 || h.State() != Off {
		t.Errorf("a host that hangs twice is %s after %d tries: %v", h.State(), len(tries), err)
	}
	l.started = hang(1)
	if err := h.Boot(t.Context()); err != nil || len(tries) != 2 {
		t.Errorf("a host that hangs once was tried %d times: %v", len(tries), err)
	}
	if _, err := h.Output(t.Context(), "true"); err != nil {
		t.Error(err)
	}
}

func TestHostThatEndsWhileItBootsIsNoneThatHangs(t *testing.T) {
	l := Start(t)
	s := DefaultSpec("h1")
	s.Args = "rdinit=/nothing" // a panic, and the end
	hosts, err := l.Add(s)
	if err != nil {
		t.Fatal(err)
	}
	err = hosts[0].Boot(t.Context())
	if err == nil || errors.Is(err, errHung) || !strings.Contains(err.Error(), "panic") {
		t.Errorf("the error should show the console: %v", err)
	}
}

// TestInsideIsAHost is the half of TestHosts that runs in a host.
func TestInsideIsAHost(t *testing.T) {
	Inside(t)
	name, err := os.Hostname()
	if err != nil || name != os.Getenv("WANT_HOST") || InsideName() != name {
		t.Errorf("the host is %q (%q): %v", name, InsideName(), err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		t.Errorf("it has not cgroup v2 alone: %v", err)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil || !strings.Contains(unix.ByteSliceToString(u.Version[:]), "Debian") {
		t.Errorf("its kernel is %s, %v", unix.ByteSliceToString(u.Version[:]), err)
	}
}

func commands(t *testing.T, h *Host) {
	if out, err := h.Output(t.Context(), "echo", "hello"); out != "hello\n" || err != nil {
		t.Errorf("echo said %q, %v", out, err)
	}
	_, err := h.Shell(t.Context(), "echo why >&2; exit 7")
	if status, ok := Status(err); !ok || status != 7 || !strings.Contains(err.Error(), "why") {
		t.Errorf("the error of a command that fails is %v", err)
	}
	status, err := h.Exec(t.Context(), Command{ExecRequest: api.ExecRequest{Command: []string{"sh", "-c", "kill -9 $$"}}})
	if status != 128+9 || err != nil {
		t.Errorf("a command that was killed ended with %d, %v", status, err)
	}
	var out strings.Builder
	in := strings.NewReader(strings.Repeat("x", 1<<20))
	status, err = h.Exec(t.Context(), Command{ExecRequest: api.ExecRequest{Command: []string{"wc", "-c"}}, Stdin: in, Stdout: &out})
	if status != 0 || err != nil || strings.TrimSpace(out.String()) != "1048576" {
		t.Errorf("of 1 MiB came %q, %d, %v", out.String(), status, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := h.Output(ctx, "sleep", "1000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command outlived its context: %v", err)
	}
}

// ping sends n requests from one host to another, and returns how many were
// answered and the shortest time.
func ping(t *testing.T, from, to *Host, n int) (answers int, shortest time.Duration) {
	t.Helper()
	out, err := from.Output(t.Context(), "ping", "-c", strconv.Itoa(n), "-W", "1", "-q", to.Name)
	if _, failed := Status(err); err != nil && !failed {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(\d+) packets received`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("ping said %q, %v", out, err)
	}
	answers, _ = strconv.Atoi(m[1])
	if m = regexp.MustCompile(`= ([0-9.]+)/`).FindStringSubmatch(out); m != nil {
		ms, _ := strconv.ParseFloat(m[1], 64)
		shortest = time.Duration(ms * float64(time.Millisecond))
	}
	return answers, shortest
}

// received counts the requests that came to a host, answered or not.
func received(t *testing.T, h *Host) int {
	t.Helper()
	out, err := h.Shell(t.Context(), `awk '/^Icmp:/ {if (n++) print $10}' /proc/net/snmp`)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func links(t *testing.T, a, b *Host) {
	link := func(c Change) {
		t.Helper()
		if err := a.lab.Link(c); err != nil {
			t.Fatal(err)
		}
	}
	// Nobody has to ask for addresses over links that are cut.
	for _, h := range [][2]*Host{{a, b}, {b, a}} {
		if _, err := h[0].Output(t.Context(), "ip", "neighbor", "replace", h[1].Address, "lladdr", h[1].MAC, "dev", "eth0", "nud", "permanent"); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := ping(t, a, b, 2); n != 2 {
		t.Fatalf("%d of 2 answers over a whole link", n)
	}
	link(Change{From: a.Name, Rule: wire.Rule{Cut: true}})
	before := received(t, b)
	if n, _ := ping(t, a, b, 1); n != 0 || received(t, b) != before {
		t.Errorf("%d answers over a link that is cut", n)
	}
	link(Change{From: a.Name})
	// Cut one way: requests arrive, answers don't.
	link(Change{From: b.Name, To: a.Name, OneWay: true, Rule: wire.Rule{Cut: true}})
	before = received(t, b)
	if n, _ := ping(t, a, b, 1); n != 0 {
		t.Errorf("%d answers on the way that is cut", n)
	}
	if received(t, b) != before+1 {
		t.Error("a request was lost on the way that is whole")
	}
	const delay = 150 * time.Millisecond
	link(Change{From: a.Name, To: b.Name, OneWay: true})
	link(Change{From: a.Name, To: b.Name, Rule: wire.Rule{Delay: delay}})
	n, slow := ping(t, a, b, 2)
	if n != 2 || slow < 2*delay {
		t.Errorf("%d of 2 answers, after %s with %s each way", n, slow, delay)
	}
	link(Change{From: b.Name})
	n, fast := ping(t, a, b, 2)
	if n != 2 || fast >= slow {
		t.Errorf("%d of 2 answers over a healed link, after %s", n, fast)
	}
	t.Logf("round trip: %s, delayed by %s each way: %s", fast, delay, slow)
	if err := a.lab.Link(Change{From: "nobody"}); api.AsError(err).Code != api.CodeNotFound {
		t.Errorf("a link of a host that isn't there: %v", err)
	}
}

func pause(t *testing.T, a, b *Host) {
	if err := b.Pause(); err != nil {
		t.Fatal(err)
	}
	if n, _ := ping(t, a, b, 1); n != 0 || b.State() != Paused {
		t.Errorf("%d answers of a host that is %s", n, b.State())
	}
	soon, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if b.answers(soon) || !a.answers(t.Context()) {
		t.Error("who is paused answers, or who isn't doesn't")
	}
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Output(t.Context(), "true"); err != nil || b.State() != On {
		t.Errorf("after that it is %s: %v", b.State(), err)
	}
}

// power crashes a host, and cuts its power: what a crash leaves, a loss of
// power need not.
func power(t *testing.T, h *Host) {
	put := func(line string) {
		t.Helper()
		if _, err := h.Shell(t.Context(), line); err != nil {
			t.Fatal(err)
		}
	}
	// Straight to the disk: nothing but the disk's own cache is left to lose.
	put(`mkdir -p /var/t; cd /var/t
		dd if=/dev/zero of=safe bs=4k count=16; dd if=/dev/zero of=unsafe bs=4k count=16; sync
		yes safe | dd of=safe bs=4k count=16 iflag=fullblock oflag=direct conv=notrunc; sync
		yes lost | dd of=unsafe bs=4k count=16 iflag=fullblock oflag=direct conv=notrunc`)
	boot := func() {
		t.Helper()
		if err := h.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(file, want string) {
		t.Helper()
		if out, err := h.Shell(t.Context(), fmt.Sprintf("head -n 1 /var/t/%s | tr '\\0' 0 | cut -c1-4", file)); err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%s holds %q, want %q: %v", file, out, want, err)
		}
	}
	if h.Kill(); h.State() != Off {
		t.Errorf("a host that was killed is %s", h.State())
	}
	if _, err := h.Output(t.Context(), "true"); api.AsError(err).Code != api.CodeConflict {
		t.Errorf("a command in a host that is off: %v", err)
	}
	boot()
	holds("safe", "safe")
	holds("unsafe", "lost")
	put(`cd /var/t; dd if=/dev/zero of=unsafe bs=4k count=16 conv=notrunc; sync
		yes lost | dd of=unsafe bs=4k count=16 iflag=fullblock oflag=direct conv=notrunc`)
	if lost := h.LosePower(); lost < 64<<10 {
		t.Errorf("%d bytes were lost, 64 KiB were not flushed", lost)
	}
	boot()
	holds("safe", "safe")
	holds("unsafe", "0000")
	begin := time.Now()
	if err := h.PowerOff(t.Context()); err != nil || h.State() != Off {
		t.Errorf("after it was powered off it is %s: %v", h.State(), err)
	}
	t.Logf("powered off in %s", time.Since(begin).Round(time.Millisecond))
}
