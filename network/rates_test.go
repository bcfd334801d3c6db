package network

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/network/internal/nettest"
)

// throughput sends for a while from one namespace to the other and returns
// bytes a second, as they came.
func throughput(t *testing.T, from, to *nettest.Namespace, address string, d time.Duration) float64 {
	t.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) { l, err = net.Listen("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	rate := make(chan float64)
	go func() {
		c, err := l.Accept()
		if err != nil {
			rate <- 0
			return
		}
		defer func() { _ = c.Close() }()
		// What the bucket lets through at once is not its rate.
		_, _ = io.CopyN(io.Discard, c, 128<<10)
		start := time.Now()
		n, _ := io.Copy(io.Discard, c)
		rate <- float64(n) / time.Since(start).Seconds()
	}()
	var c net.Conn
	if err := from.Do(func() (err error) { c, err = net.Dial("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(d))
	_, _ = io.Copy(c, zeros{})
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	return <-rate
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestRatesHoldBothWaysAndChangeLive(t *testing.T) { ends(t, holdRates) }

func holdRates(w *world) {
	t := w.T
	n := w.network(w.m, "default", api.NetworkSpec{})
	v4, _ := gateways(n)
	g := w.unplugged(w.m, n, "rated")
	g.In, g.Out = 4*api.MiB, 2*api.MiB
	w.plug(w.m, n, g)
	measure := func(in, out float64) {
		t.Helper()
		for _, m := range []struct {
			name     string
			from, to *nettest.Namespace
			address  string
			want     float64
		}{
			{"in", w.outside, g.Namespace, at(g.IPv4.String(), 5001), in},
			{"out", g.Namespace, w.outside, at(worldIP4, 5001), out},
		} {
			// Where others take the processor, a rate can be measured only
			// now and then; one that doesn't hold never is.
			for try, d := 0, 1200*time.Millisecond; ; try, d = try+1, d*3/2 {
				got := throughput(t, m.from, m.to, m.address, d)
				if m.want == 0 && got > 10e6 || got > 0.7*m.want && got < 1.15*m.want {
					break
				}
				if try == 6 {
					t.Errorf("%s: %.1f MB/s, want %.1f", m.name, got/1e6, m.want/1e6)
					break
				}
			}
		}
	}
	w.outside.Run("ip", "route", "add", v4.Masked().String(), "via", hostIP4)
	run(t, "nft", "insert", "rule", "inet", "cleave", "to-guest", "accept") // to be reached without a forward
	measure(4<<20, 2<<20)
	g.In, g.Out = 1*api.MiB, 8*api.MiB
	if err := w.m.SetRates(t.Context(), g.Port); err != nil {
		t.Fatal(err)
	}
	measure(1<<20, 8<<20)
	g.In, g.Out = 0, 0
	if err := w.m.SetRates(t.Context(), g.Port); err != nil {
		t.Fatal(err)
	}
	measure(0, 0)
	if err := w.m.SetRates(t.Context(), Port{Link: "nothing"}); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("of no port: %v", err)
	}
}
