package link

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/network/internal/nettest"
)

func tap(bridge int) Tap {
	return Tap{Name: "t1", MAC: net.HardwareAddr{0xfe, 0, 0, 0, 0, 1}, Group: group, Bridge: bridge, MTU: 1400, IPv6: true}
}

func TestAddTapPutsThePortInPlace(t *testing.T) {
	c, bridge := dial(t)
	f, index, err := c.AddTap(tap(bridge))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.Index("t1"); got != index || err != nil {
		t.Errorf("index %d, %v, want %d", got, err, index)
	}
	out := nettest.Here(t, "ip", "-d", "address", "show", "t1")
	for _, want := range []string{
		"fe:00:00:00:00:01", "master br0", "group 77", ",UP", "mtu 1400", "learning off", "flood off",
		"pi off", "vnet_hdr on", "persist off", "numtxqueues 1 ",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if strings.Contains(out, "inet") {
		t.Errorf("has an address: %s", out)
	}
	if _, _, err := c.AddTap(tap(bridge)); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the same again: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Index("t1"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("without its descriptor: %v", err)
	}
}

func TestAddTapThatFailsLeavesNothing(t *testing.T) {
	c, _ := dial(t)
	for name, bridge := range map[string]int{"no bridge": 9999, "settings of a port": 0} {
		if _, _, err := c.AddTap(tap(bridge)); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := c.Index("t1"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%s: left a link, %v", name, err)
		}
	}
}

// A monitor in a namespace of its own, without privileges, opens the tap by
// its name, closes it and opens it again; behind it is the port.
func TestPatchJoinsATapWithAPort(t *testing.T) {
	c, bridge := dial(t)
	ns := nettest.New(t)
	v := veth(1, bridge, ns.PID)
	v.MTU = 1400
	if _, err := c.AddVeth(v); err != nil {
		t.Fatal(err)
	}
	const owner = 1234
	if err := Patch(ns.PID, "wire0", v.Peer, owner); err != nil {
		t.Fatal(err)
	}
	inside := ns.Run("ip", "-d", "address", "show")
	for _, want := range []string{"wire0: ", "mtu 1400", "persist on", "user 1234", "vnet_hdr on"} {
		if !strings.Contains(inside, want) {
			t.Errorf("no %q inside: %s", want, inside)
		}
	}
	if strings.Contains(inside, "fe80") {
		t.Errorf("an address: %s", inside)
	}
	port := nettest.Self(t).Raw(t, "v1")
	frame := func(mark string) []byte {
		return append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, mark...)
	}
	for i := range 2 {
		fd := openAs(t, ns, "wire0")
		out, in := fmt.Sprint("out of the guest ", i), fmt.Sprint("into the guest ", i)
		if _, err := syscall.Write(fd, append(make([]byte, 10), frame(out)...)); err != nil {
			t.Fatal(err)
		}
		if !port.Receives([]byte(out), nettest.Hang) {
			t.Error("nothing came out")
		}
		// Again and again: the kernel gives a tap that was opened its queue in
		// the background, and drops what comes before.
		for end := time.Now().Add(nettest.Hang); ; {
			port.Send(t, frame(in))
			if reads(fd, in) {
				break
			}
			if time.Now().After(end) {
				t.Fatal("nothing came in")
			}
		}
		_ = unix.Close(fd)
	}
	if err := Patch(ns.PID, "wire0", v.Peer, owner); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the same again: %v", err)
	}
	if err := Patch(ns.PID, "wire1", "nothing", owner); err == nil {
		t.Error("patched to nothing")
	}
}

// openAs opens a tap of the namespace as the one who owns it may. The thread
// is given up: it isn't privileged any more.
func openAs(t *testing.T, ns *nettest.Namespace, name string) (fd int) {
	t.Helper()
	err := ns.Do(func() error {
		// Opened before, since the host's node may be root's alone; a jail has
		// one of its own.
		var err error
		if fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		// Raw system calls change this thread only.
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, 1234, 1234, 0); e != 0 {
			return e
		}
		defer syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(tapFlags)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// reads tells whether a frame with mark comes.
func reads(fd int, mark string) bool {
	b := make([]byte, 2048)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			return false
		}
		if n, err := unix.Read(fd, b); err == nil && strings.Contains(string(b[:n]), mark) {
			return true
		}
	}
}
