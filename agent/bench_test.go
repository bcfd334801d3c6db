package agent_test

import (
	"io"
	"net"
	"testing"

	"github.com/cleave-project/cleave/agent"
)

// BenchmarkExecTrue is what exec costs in a warm guest, from connecting to
// the exit status.
func BenchmarkExecTrue(b *testing.B) {
	g := startServe(b)
	for b.Loop() {
		conn, err := net.Dial("unix", g.addr)
		if err != nil {
			b.Fatal(err)
		}
		c, err := agent.Dial(b.Context(), conn)
		if err != nil {
			b.Fatal(err)
		}
		e, err := c.Exec(b.Context(), agent.ExecRequest{Command: []string{"true"}})
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, e.Stdout())
		io.Copy(io.Discard, e.Stderr())
		if code, err := e.Wait(b.Context()); code != 0 || err != nil {
			b.Fatal(code, err)
		}
		e.Close()
		c.Close()
	}
}

// BenchmarkThroughput is how fast a command's output arrives.
func BenchmarkThroughput(b *testing.B) {
	c := startServe(b).dial(b)
	e, err := c.Exec(b.Context(), agent.ExecRequest{Command: []string{"dd", "if=/dev/zero", "bs=64k"}})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	const size = 1 << 20
	buf := make([]byte, size)
	b.SetBytes(size)
	for b.Loop() {
		if _, err := io.ReadFull(e.Stdout(), buf); err != nil {
			b.Fatal(err)
		}
	}
}
