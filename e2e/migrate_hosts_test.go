package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/wire"
)

// TestGuestMovesBetweenHosts moves a guest of a stock kernel to another host
// and back by TLS, while it writes numbers to its memory, to a disk that each
// host has of its own, and to a connection. Then the wire is cut in the middle of a move: the guest goes on where it was
// and nowhere else, and moves once the wire is whole. At last it goes on at
// the other host before its memory is there, the wire is cut behind it, and
// what is left follows once that is whole.
func TestGuestMovesBetweenHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("boots two hosts")
	}
	lab.Again(t, guestMovesBetweenHosts)
}

func guestMovesBetweenHosts(t testing.TB) {
	m := newMoving(t)
	m.newDisk(0)
	m.begin(0, "--disk /var/disk --kernel /lab/kernel --initrd /lab/initrd --command 'console=ttyS0 quiet panic=-1'")
	m.said(5)
	for from := range m.hosts {
		m.move(from)
		m.said(20)
	}
	m.cutInTheMiddle()
	m.said(20)
	m.stayed()
	if err := m.lab.Link(lab.Change{From: "h1"}); err != nil {
		t.Fatal(err)
	}
	m.move(0)
	m.said(20)
	m.cutBehind()
	t.Logf("5 moves, one of them cut and one resumed, and %d numbers", m.said(20))
	m.onDisk(0)
}

// moving are two hosts, of which each can have the guest. It says numbers to a
// program of h1, from wherever it is.
type moving struct {
	t     testing.TB
	lab   *lab.Lab
	hosts []*lab.Host
}

func newMoving(t testing.TB) *moving {
	t.Helper()
	kernel, initrd := migrateParts(t)
	cert, key := ownCertificate(t, "h1", "h2")
	m := &moving{t: t, lab: lab.Start(t)}
	specs := []lab.Spec{lab.DefaultSpec("h1"), lab.DefaultSpec("h2")}
	for i := range specs {
		// One processor alone is taken for stuck while it emulates.
		for _, need := range []lab.Need{
			lab.KVM, lab.CPUs(2), lab.File("kernel", kernel), lab.File("initrd", initrd), lab.File("cleave-vmm", "../bin/cleave-vmm"),
			lab.File("tls/cert.pem", cert), lab.File("tls/ca.pem", cert), lab.File("tls/key.pem", key),
		} {
			need(&specs[i])
		}
	}
	var err error
	if m.hosts, err = m.lab.Add(specs...); err != nil {
		t.Fatal(err)
	}
	if err := m.lab.Boot(t.Context(), m.hosts...); err != nil {
		t.Fatal(err)
	}
	for i := range m.hosts {
		// A bridge without an address of its own takes that of a port, another
		// one when a monitor's comes or goes, and neighbours keep the old one.
		m.shell(i, `set -e; modprobe -a tun bridge; ip link add moves address $(cat /sys/class/net/eth0/address) type bridge; ip addr flush dev eth0; ip link set eth0 master moves
			ip addr add 10.87.0.%d/24 dev moves; ip link set moves up`, i+1)
	}
	m.shell(0, "ip addr add 10.99.0.1/24 dev moves; sleep 3600 </dev/null 2>/dev/null | nc -l -p 7000 >/var/numbers 2>/var/log.nc &")
	return m
}

// try runs a line of shell in a host, and gives up after some minutes.
func (m *moving) try(at int, format string, args ...any) (string, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), movePatience)
	defer cancel()
	out, err := m.hosts[at].Shell(ctx, fmt.Sprintf(format, args...))
	return strings.TrimSpace(out), err
}

// shell is try of what doesn't fail.
func (m *moving) shell(at int, format string, args ...any) string {
	m.t.Helper()
	out, err := m.try(at, format, args...)
	if err != nil {
		m.stuck("%s: %s: %v: %s", m.hosts[at].Name, fmt.Sprintf(format, args...), err, out)
	}
	return out
}

// stuck has all monitors tell how the move goes and what they do, and ends the
// test.
func (m *moving) stuck(format string, args ...any) {
	m.t.Helper()
	for i, h := range m.hosts {
		out, err := m.try(i, `timeout 20 /lab/cleave-vmm control /var/c migration 2>&1
			for p in $(pidof cleave-vmm); do kill -QUIT $p; done; sleep 2; cat /var/moved /var/log.*`)
		m.t.Logf("%s: %v\n%s", h.Name, err, out)
	}
	m.t.Fatalf(format, args...)
}

// begin starts a monitor, in whose place is what the guest comes from, behind
// the one that was there before.
func (m *moving) begin(at int, guest string) {
	m.t.Helper()
	m.ended(at)
	m.shell(at, `rm -f /var/c; setsid /lab/cleave-vmm %s --memory 192MiB --net tap0,mac=02:00:00:00:00:07 --control /var/c \
		</dev/null >/var/log.vmm 2>&1 & echo $! >/var/pid
		until ip link set tap0 master moves up 2>/dev/null; do [ -d /proc/$! ] || exit 1; sleep 0.1; done`, guest)
}

// diskSize is that of the guest's disk.
const diskSize = 64 << 20

// newDisk makes an empty disk in a host, instead of the one that it may have.
func (m *moving) newDisk(at int) {
	m.t.Helper()
	m.shell(at, "rm -f /var/disk; truncate -s %d /var/disk", diskSize)
}

// onDisk ends the guest, and looks whether a host's disk has each number that
// it has said.
func (m *moving) onDisk(at int) {
	m.t.Helper()
	m.shell(at, "/lab/cleave-vmm control /var/c stop")
	m.ended(at)
	said := m.said(0)
	got := m.shell(at, `i=1; while [ $i -le %d ]; do dd if=/var/disk bs=512 skip=$i count=1 2>/dev/null | head -c 8; echo; i=$((i + 1)); done`, said)
	for i, line := range strings.Fields(got) {
		if want := fmt.Sprintf("%08d", i+1); line != want {
			m.t.Fatalf("on the disk is %q instead of %s", line, want)
		}
	}
}

// expect starts a monitor that waits for the guest, with a disk whose content
// is to come.
func (m *moving) expect(at int) {
	m.t.Helper()
	m.ended(at)
	m.newDisk(at)
	m.begin(at, "--disk /var/disk,mirror --incoming 0.0.0.0:7700,tls=/lab/tls")
	m.shell(at, "until /lab/cleave-vmm control /var/c migration 2>/dev/null | grep -q awaiting; do sleep 0.1; done")
}

// ended waits until a host's monitor has ended, if there was one.
func (m *moving) ended(at int) {
	m.t.Helper()
	m.shell(at, "[ ! -e /var/pid ] || while [ -d /proc/$(cat /var/pid) ]; do sleep 0.1; done")
}

// said waits until the guest has said n numbers more, and tells how many it
// has said: each once and in order.
func (m *moving) said(n int) int {
	m.t.Helper()
	had, _ := strconv.Atoi(m.shell(0, "wc -l </var/numbers"))
	all := m.shell(0, "until [ $(wc -l </var/numbers) -ge %d ]; do sleep 0.2; done; head -n $(wc -l </var/numbers) /var/numbers", had+n)
	numbers := strings.Fields(all)
	for i, s := range numbers {
		if s != strconv.Itoa(i+1) {
			m.t.Fatalf("number %d is %q", i+1, s)
		}
	}
	return len(numbers)
}

// move moves the guest to the other host.
func (m *moving) move(from int) {
	m.t.Helper()
	m.expect(1 - from)
	r := m.report(m.shell(from, "/lab/cleave-vmm control /var/c migrate %s:7700 --tls /lab/tls --streams 2 --mirror disk0 2>&1", m.hosts[1-from].Name))
	if r.State != "gone" {
		m.stuck("the guest is %s", r.State)
	}
	if there := m.state(1 - from).State; there != "arrived" {
		m.stuck("the guest is gone, and there it has %s", there)
	}
	m.t.Logf("from %s: %+v", m.hosts[from].Name, r)
}

// cutInTheMiddle begins to move the guest from h1, and cuts the wire when some
// megabytes of its memory are there.
func (m *moving) cutInTheMiddle() {
	m.t.Helper()
	m.expect(1)
	passed := func() uint64 { return m.lab.Wire.Counters("h1", "h2").Passed }
	begin := passed()
	m.shell(0, "setsid /lab/cleave-vmm control /var/c migrate h2:7700 --tls /lab/tls --mirror disk0 </dev/null >/var/moved 2>&1 & echo $! >/var/mover")
	for deadline := time.Now().Add(movePatience); passed() < begin+2000; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.stuck("of a move there are %d frames", passed()-begin)
		}
	}
	if err := m.lab.Link(lab.Change{From: "h1", Rule: wire.Rule{Cut: true}}); err != nil {
		m.t.Fatal(err)
	}
	if r := m.state(0); r.State != "leaving" || r.Phase != "copying" {
		m.stuck("the wire was to be cut in the middle of a move, and that is %+v", r)
	}
	if r := m.state(1); r.State != "arriving" {
		m.stuck("the wire was to be cut in the middle of a move, and that is %+v", r)
	}
	m.t.Logf("the wire was cut behind %d frames", passed()-begin)
}

// stayed waits until both sides have given a move from h1 up.
func (m *moving) stayed() {
	m.t.Helper()
	begin := time.Now()
	m.shell(0, "while [ -d /proc/$(cat /var/mover) ]; do sleep 0.2; done")
	if r := m.state(0); r.State != "stayed" {
		m.stuck("the guest could not leave, and is %s", r.State)
	}
	m.ended(1)
	m.t.Logf("%s later both sides have given up: %s; %s", time.Since(begin).Round(time.Second), m.shell(0, "cat /var/moved"), m.shell(1, "tail -n 1 /var/log.vmm"))
}

// cutBehind moves the guest from h2 by way of post-copy, cuts the wire while its
// memory follows it, and has that resumed.
func (m *moving) cutBehind() {
	m.t.Helper()
	m.expect(0)
	begin := time.Now()
	// Frames take their time, so that there is some to cut the wire in.
	for _, from := range []string{"h1", "h2"} {
		if err := m.lab.Link(lab.Change{From: from, Rule: wire.Rule{Delay: 20 * time.Millisecond}}); err != nil {
			m.t.Fatal(err)
		}
	}
	m.shell(1, "setsid /lab/cleave-vmm control /var/c migrate h1:7700 --tls /lab/tls --streams 2 --mirror disk0 --post-copy --downtime 1ms </dev/null >/var/moved 2>&1 & echo $! >/var/mover")
	for m.state(1).State != "following" {
		if r := m.state(1); r.State == "gone" || r.State == "stayed" || time.Since(begin) > movePatience {
			m.stuck("the guest was to run before its memory: %+v", r)
		}
	}
	if err := m.lab.Link(lab.Change{From: "h1", Rule: wire.Rule{Cut: true}}); err != nil {
		m.t.Fatal(err)
	}
	m.shell(1, "while [ -d /proc/$(cat /var/mover) ]; do sleep 0.2; done")
	r, there := m.state(1), m.state(0)
	if r.State != "interrupted" || there.State != "following" || there.Left == 0 {
		m.stuck("the wire was to be cut behind the guest, and there is %+v, %+v", r, there)
	}
	m.t.Logf("cut behind the guest: %+v, %+v: %s", r, there, m.shell(1, "cat /var/moved"))
	for _, from := range []string{"h1", "h2"} {
		if err := m.lab.Link(lab.Change{From: from}); err != nil {
			m.t.Fatal(err)
		}
	}
	r = m.report(m.shell(1, "/lab/cleave-vmm control /var/c migrate h1:7700 --tls /lab/tls --streams 2 --resume 2>&1"))
	if there := m.state(0); r.State != "gone" || there.State != "arrived" || there.Left != 0 {
		m.stuck("the rest of the guest was to follow it, and there is %+v, %+v", r, there)
	}
	m.t.Logf("resumed: %+v", r)
}

// state is what a host's monitor says of a move.
func (m *moving) state(at int) migrateReport {
	m.t.Helper()
	return m.report(m.shell(at, "/lab/cleave-vmm control /var/c migration"))
}

func (m *moving) report(said string) (r migrateReport) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(said), &r); err != nil {
		m.stuck("%v: %s", err, said)
	}
	return r
}

// ownCertificate makes a certificate that has signed itself, and its key.
func ownCertificate(t testing.TB, names ...string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
