package server

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// BenchmarkListThousand is what 'cleave list' costs with 1,000 guests, from
// the client's request to the last byte of the answer.
func BenchmarkListThousand(b *testing.B) {
	f := newFake()
	now := time.Now()
	for i := range 1000 {
		name := fmt.Sprintf("guest-%d", i)
		f.instances["default/"+name] = &api.Instance{
			Meta: api.Meta{ID: "abcdefghij", Project: "default", Name: name, Labels: map[string]string{"tier": "front"}, Revision: int64(i + 1), Created: now},
			Spec: api.InstanceSpec{
				Kind: api.KindContainer, Image: "docker.io/library/debian:bookworm", Power: api.PowerRunning,
				Command: []string{"httpd", "-f"}, Env: map[string]string{"A": "1", "B": "2"}, Resources: api.Resources{CPUs: 1, Memory: api.GiB},
			},
			Status: api.InstanceStatus{
				Phase: api.PhaseRunning, Host: "host", Engine: "container", Digest: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
				Epoch: 12, PID: 4000 + i, UIDBase: 65536, Started: &now, NICs: []api.Port{{Network: "default", Name: "eth0", MAC: "02:00:00:00:00:01", IPv4: "10.83.0.2/24", IPv6: "fd00::2/64"}},
			},
		}
	}
	h := start(b, f)
	for b.Loop() {
		resp, err := h.client.Get(h.base + "/v1/instances")
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
}
