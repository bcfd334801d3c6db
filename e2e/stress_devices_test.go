package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/control"
)

// portsKeepWhatTheyCarry has streams go both ways at the same time, with the
// offloads that Linux takes.
func portsKeepWhatTheyCarry(t *testing.T, g *loadGuest, _, _ string) *loadGuest {
	l, err := net.Listen("tcp", "10.98.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	begin := time.Now()
	for range stressed(1) {
		streamsGoBothWays(t, g, l.(*net.TCPListener))
	}
	t.Logf("%d MiB each way in %s", stressed(1), time.Since(begin).Round(time.Millisecond))
	return g
}

// sums are those of what an end sent and got.
type sums struct {
	sent, got string
	err       error
}

// streamsGoBothWays has host and guest send each other a mebibyte.
func streamsGoBothWays(t *testing.T, g *loadGuest, l *net.TCPListener) {
	t.Helper()
	result := make(chan sums, 1)
	go func() { result <- hostStream(l) }()
	words := g.ask(t, fmt.Sprintf("stream %s 1", l.Addr()))
	s := <-result
	if s.err != nil || len(words) != 2 || words[0] != s.got || words[1] != s.sent {
		t.Errorf("the guest sent and got %v, the host got %s and sent %s: %v", words, s.got, s.sent, s.err)
	}
}

// hostStream is the host's end of a stream.
func hostStream(l *net.TCPListener) (s sums) {
	deadline := time.Now().Add(stressPatience)
	if s.err = l.SetDeadline(deadline); s.err != nil {
		return s
	}
	c, err := l.AcceptTCP()
	if err != nil {
		s.err = err
		return s
	}
	defer c.Close()
	if s.err = c.SetDeadline(deadline); s.err != nil {
		return s
	}
	got, sent := sha256.New(), sha256.New()
	received := make(chan error, 1)
	go func() { _, err := io.Copy(got, c); received <- err }()
	_, err = io.CopyN(io.MultiWriter(c, sent), rand.NewChaCha8([32]byte{2}), 1<<20)
	s.err = errors.Join(err, c.CloseWrite(), <-received)
	s.sent, s.got = fmt.Sprintf("%x", sent.Sum(nil)), fmt.Sprintf("%x", got.Sum(nil))
	return s
}

// disksKeepWhatIsWritten has the guest write, erase and flush from several
// threads; it and the host have to read the same.
func disksKeepWhatIsWritten(t *testing.T, g *loadGuest, _, disk string) *loadGuest {
	begin := time.Now()
	for range stressed(1) {
		sums := g.ask(t, "disk /dev/vda")
		b, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range sums {
			if got := fmt.Sprintf("%x", sha256.Sum256(b[i<<20:][:1<<20])); got != want {
				t.Errorf("region %d is %s, and the guest wrote %s", i, got, want)
			}
		}
		if len(sums) != 4 {
			t.Errorf("%d regions", len(sums))
		}
	}
	t.Logf("%d × 400 operations in %s", stressed(1), time.Since(begin).Round(time.Millisecond))
	return g
}

// openTestTap makes a tap that ends when it is closed.
func openTestTap(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := unix.NewIfreq("hot%d")
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "tap")
}

// devicesComeAndGo plugs a disk and a port in and takes them out, over and
// over: nothing of them may stay in the guest or the monitor.
func devicesComeAndGo(t *testing.T, g *loadGuest, dir, _ string) *loadGuest {
	file := filepath.Join(dir, "hot")
	emptyDisk(t, file)
	before := strings.Join(g.ask(t, "devices"), " ")
	rounds := stressed(20)
	warm := max(4, min(rounds/2, 100)) // until then what grows only once has grown
	pid := g.cmd.Process.Pid
	begin, kib, files := time.Now(), 0, 0
	for n := range warm + rounds {
		if n == warm {
			kib, files = uses(t, pid)
		}
		devicesRound(t, g, file, n)
		if n%stressTold == 0 {
			kib, files := uses(t, pid)
			t.Logf("plugged and taken %d times in %s: %d KiB, %d files", n+1, time.Since(begin).Round(time.Second), kib, files)
		}
	}
	took := time.Since(begin)
	if after := strings.Join(g.ask(t, "devices"), " "); after != before {
		t.Errorf("the guest had %s and has %s", before, after)
	}
	kibAfter, filesAfter := uses(t, pid)
	if filesAfter > files || kibAfter > kib+8<<10 { // it collects its garbage every 4 MiB or so
		t.Errorf("the monitor had %d KiB and %d files, and has %d and %d", kib, files, kibAfter, filesAfter)
	}
	g.check(t)
	t.Logf("%d times in %s: from %d to %d KiB, from %d to %d files", warm+rounds, took.Round(time.Millisecond), kib, kibAfter, files, filesAfter)
	return g
}

// devicesRound plugs a disk and a port of their own names. Every second time
// they are taken while the guest may still look at them.
func devicesRound(t *testing.T, g *loadGuest, file string, n int) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tap := openTestTap(t)
	defer tap.Close()
	serial, address := fmt.Sprintf("round%d", n), fmt.Sprintf("02:00:00:01:%02x:%02x", n>>8&0xff, n&0xff)
	within(t, serial, func(ctx context.Context) error {
		return errors.Join(g.AddDisk(ctx, control.Disk{Name: "hot", Serial: serial}, f, nil),
			g.AddNet(ctx, control.Net{Name: "port", MAC: address}, []*os.File{tap}))
	})
	if n%2 == 0 {
		g.ask(t, "see "+serial+" "+address)
	}
	within(t, serial, func(ctx context.Context) error {
		return errors.Join(g.Remove(ctx, control.Remove{Name: "hot", Timeout: stressPatience / 2}),
			g.Remove(ctx, control.Remove{Name: "port", Timeout: stressPatience / 2}))
	})
}
