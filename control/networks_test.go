package control

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
)

// What a network needs may come a moment after the daemon.
func TestANetworkThatIsNotReadyIsTriedAgain(t *testing.T) {
	old := networkRetry
	networkRetry = time.Millisecond
	t.Cleanup(func() { networkRetry = old })
	w := newWorld(t)
	w.c.Close()
	w.net.failEnsure = 3
	w.start()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := false
	err := w.c.Events(ctx, Since{Time: time.Unix(1, 0), Follow: true}, func(e api.Event) error {
		if e.Type == "network.ready" {
			done = true
			cancel()
		}
		return nil
	})
	if !done {
		t.Fatalf("it never was ready: %v", err)
	}
	n, err := w.c.Network(t.Context(), "", "default")
	if err != nil || n.Status.State != "ready" {
		t.Errorf("%+v, %v", n, err)
	}
	// Until then it says why not, and the daemon can end.
	w.c.Close()
	w.net.failEnsure = 1
	networkRetry = time.Hour
	w.start()
	if n, err := w.c.Network(t.Context(), "", "default"); err != nil || !strings.Contains(n.Status.State, "taken") {
		t.Errorf("%+v, %v", n, err)
	}
}
