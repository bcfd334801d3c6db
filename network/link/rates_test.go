package link

import (
	"fmt"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestRates(t *testing.T) {
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b"}
	if err := c.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	i, _ := c.Index("a")
	for _, r := range []uint64{1 << 20, 5 << 30, 1000, 0, 0, 125000} {
		t.Log(r, c.Limit(i, r))
		n, err := c.Divert(i, "ai", 77)
		t.Log(n, err)
		t.Log(c.Limit(n, r))
		out, _ := exec.Command("tc", "-s", "qdisc", "show").CombinedOutput()
		fmt.Println(string(out))
		out, _ = exec.Command("tc", "filter", "show", "dev", "a", "ingress").CombinedOutput()
		fmt.Println(string(out))
	}
	out, _ := exec.Command("ip", "l").CombinedOutput()
	fmt.Println(string(out))
	t.Log(c.Undivert(i, "ai"))
	t.Log(c.Undivert(i, "ai"))
}
