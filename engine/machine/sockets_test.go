package machine

import (
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

func TestMonitorThatHasGoneMeansThatTheGuestIsEnding(t *testing.T) {
	dir := t.TempDir()
	l, err := Listen(dir, "left")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // its name stays, as that of a monitor that was killed
	_, refused := Dial(t.Context(), "me", dir, "left")
	_, missing := Dial(t.Context(), "me", dir, "none")
	said := fmt.Errorf("ask QEMU for device_del: %w", fmt.Errorf("read from QEMU's monitor: %w", io.EOF))
	for name, err := range map[string]error{
		"nobody listens": refused, "no socket": missing, "it hung up": Unanswered("me", said),
		"reset": Unanswered("me", unix.ECONNRESET), "closed": Unanswered("me", net.ErrClosed),
	} {
		if e := api.AsError(err); e.Code != api.CodeConflict || e.Message != "guest me is ending" {
			t.Errorf("%s: %v", name, err)
		}
	}
	agent := api.Errorf(api.CodeUnavailable, "its agent doesn't answer: %w", io.EOF)
	if err := Unanswered("me", agent); !api.IsCode(err, api.CodeUnavailable) {
		t.Errorf("an agent that has gone gives %v", err)
	}
}
