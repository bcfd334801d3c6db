package link

import (
	"fmt"
	"github.com/cleave-project/cleave/network/internal/nettest"
	"net"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func TestX(t *testing.T) {
	cmd := exec.Command("unshare", "-n", "sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Signal(syscall.SIGKILL); cmd.Wait() }()
	time.Sleep(200 * time.Millisecond)
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := c.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	c.LinkSetUp(br)
	bi, _ := c.Index("br0")
	var create, del time.Duration
	for i := range 200 {
		t0 := time.Now()
		v := Veth{Name: fmt.Sprint("v", i), MAC: net.HardwareAddr{0xfe, 0, 0, 0, 0, byte(i)}, Group: 77, Bridge: bi, MTU: 1500, IPv6: true, Peer: fmt.Sprint("eth", i), PeerMAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}, PID: cmd.Process.Pid}
		_, err := c.AddVeth(v)
		if err != nil {
			t.Fatal(err)
		}
		create += time.Since(t0)
	}
	for i := range 100 {
		t0 := time.Now()
		if err := c.Delete(fmt.Sprint("v", i)); err != nil {
			t.Fatal(err)
		}
		del += time.Since(t0)
	}
	t0 := time.Now()
	c.AllStats()
	fmt.Println("stats", time.Since(t0))
	out, _ := exec.Command("ip", "-d", "l", "show", "v150").CombinedOutput()
	fmt.Println(string(out))
	t0 = time.Now()
	c.DeleteGroup(77)
	fmt.Println("create", create/200, "del", del/100, "group", time.Since(t0))
}
