package agent

import (
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/cleave-project/cleave/api"
)

// A guest's socket lies in a directory that has its id for a name.
func TestEndOfAConnectionSaysNoPath(t *testing.T) {
	at := &net.UnixAddr{Name: "/run/cleave/instances/abcdefghij/agent.sock", Net: "unix"}
	for _, why := range []error{syscall.ECONNRESET, syscall.EPIPE, io.EOF, net.ErrClosed} {
		err := broken("executing in the guest", &net.OpError{Op: "read", Net: "unix", Addr: at, Err: why})
		if !api.IsCode(err, api.CodeUnavailable) || strings.Contains(err.Error(), "abcdefghij") {
			t.Errorf("%v gives %v", why, err)
		}
	}
}
