package e2e

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/lab"
)

//go:embed testdata/migrate-guest.sh
var migrateGuest string

// movesVariable says how often a guest moves in TestGuestMovesUnderLoad.
const movesVariable = "CLEAVE_TEST_MOVES"

// movePatience is how long a step of a move may take, less than lab.Silence.
const movePatience = 3 * time.Minute

// TestGuestMovesUnderLoad moves a guest of a stock kernel back and forth between
// monitors of one host, while it writes sequence numbers to its memory, its
// disk and a connection.
func TestGuestMovesUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a host")
	}
	lab.Again(t, guestMovesUnderLoad)
}

func guestMovesUnderLoad(t testing.TB) {
	kernel, initrd := migrateParts(t)
	h := lab.Hosts(t, 1, lab.KVM, lab.CPUs(2), lab.Memory(1<<30), lab.File("kernel", kernel), lab.File("initrd", initrd),
		lab.File("cleave-vmm", "../bin/cleave-vmm"))[0]
	var env []string
	if n := os.Getenv(movesVariable); n != "" {
		env = append(env, movesVariable+"="+n)
	}
	lab.Run(t, h, TestGuestMovesUnderLoadInside, env...)
}

// migrateParts are the kernel and the initramfs of a guest that moves.
func migrateParts(t testing.TB) (kernel, initrd string) {
	t.Helper()
	busybox, err := os.ReadFile("../bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	return lab.Guest(t, map[string][]byte{"init": []byte(migrateGuest), "bin/busybox": busybox})
}

// migrateReport is what a monitor says of a move.
type migrateReport struct {
	State, Phase    string
	Round, Throttle int
	Sent, Left      int64
	Downtime, Total time.Duration
}

// runInHost runs a program of the host.
func runInHost(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestGuestMovesUnderLoadInside(t *testing.T) {
	lab.Inside(t)
	moves := 3
	if n, err := strconv.Atoi(os.Getenv(movesVariable)); err == nil {
		moves = n
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 64<<20)); err != nil {
		t.Fatal(err)
	}
	runInHost(t, "modprobe", "-a", "tun", "bridge")
	runInHost(t, "ip", "link", "add", "moves", "type", "bridge")
	runInHost(t, "ip", "addr", "add", "10.99.0.1/24", "dev", "moves")
	runInHost(t, "ip", "link", "set", "moves", "up")
	l, err := net.Listen("tcp", "10.99.0.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	place := func(i int) string { return filepath.Join(dir, fmt.Sprintf("in%d", i)) }
	socket := func(i int) string { return filepath.Join(dir, fmt.Sprintf("c%d", i)) }
	begin := func(i int, args ...string) *exec.Cmd {
		tap := fmt.Sprintf("tap%d", i%2)
		if i%2 == 1 { // both ways to know what is written
			args = append(args, "--dirty-ring")
		}
		c := exec.CommandContext(ctx, "/lab/cleave-vmm", append(args, "--memory", "192MiB", "--disk", disk,
			"--net", tap+",mac=02:00:00:00:00:07", "--control", socket(i))...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for range 600 { // until the tap is there, which nothing tells
			if exec.Command("ip", "link", "set", tap, "master", "moves", "up").Run() == nil {
				return c
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatal("no tap")
		return nil
	}
	// stuck has a monitor tell what it does, and the test end.
	stuck := func(c *exec.Cmd, i int, what string) {
		t.Helper()
		state, _ := exec.Command("timeout", "20", "/lab/cleave-vmm", "control", socket(i), "migration").CombinedOutput()
		_ = c.Process.Signal(unix.SIGQUIT)
		_ = c.Wait()
		t.Fatalf("%s: %s", what, state)
	}
	at := begin(0, "--kernel", "/lab/kernel", "--initrd", "/lab/initrd", "--command", "console=ttyS0 quiet panic=-1")
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(movePatience))
	conn, err := l.Accept()
	if err != nil {
		stuck(at, 0, fmt.Sprintf("no guest connects: %v", err))
	}
	lines := bufio.NewScanner(conn)
	last := 0
	more := func(n int) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(movePatience))
		for range n {
			if !lines.Scan() {
				t.Fatalf("the guest says nothing behind %d: %v", last, lines.Err())
			}
			if last++; lines.Text() != strconv.Itoa(last) {
				t.Fatalf("the guest says %q instead of %d", lines.Text(), last)
			}
		}
	}
	more(5)
	var downtimes, totals []time.Duration
	for i := range moves {
		next := begin(i+1, "--incoming", place(i+1))
		hung, cancel := context.WithTimeout(ctx, movePatience)
		out, err := exec.CommandContext(hung, "/lab/cleave-vmm", "control", socket(i), "migrate", place(i+1)).CombinedOutput()
		cancel()
		if err != nil {
			stuck(at, i, fmt.Sprintf("move %d: %v: %s", i+1, err, out))
		}
		var m migrateReport
		if err := json.Unmarshal(out, &m); err != nil || m.State != "gone" {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("move %d: %+v", i+1, m)
		downtimes, totals = append(downtimes, m.Downtime), append(totals, m.Total)
		if err := at.Wait(); err != nil {
			t.Fatalf("the source ends with %v", err)
		}
		at = next
		more(10)
	}
	slices.Sort(downtimes)
	slices.Sort(totals)
	t.Logf("%d moves, %d numbers: downtime min %s, median %s, max %s; total median %s", moves, last,
		downtimes[0], downtimes[moves/2], downtimes[moves-1], totals[moves/2])
	runInHost(t, "/lab/cleave-vmm", "control", socket(moves), "stop")
	_ = at.Wait()
	b, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= last; i++ {
		if want := fmt.Sprintf("%08d", i); string(b[512*i:512*i+8]) != want {
			t.Fatalf("on the disk is %q instead of %s", b[512*i:512*i+8], want)
		}
	}
}
