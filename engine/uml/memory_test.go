package uml

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine/machine"
)

// The kernel of a paused guest has a console that takes requests and answers
// none.
func TestMemoryOfAGuestThatDoesNotAnswerIsATimeout(t *testing.T) {
	dir, err := os.MkdirTemp("", "um") // t.TempDir's are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, d := range []string{filepath.Join(ownDir, umid), replyDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	silent, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, ownDir, umid, "mconsole"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = (&monitor{}).Update(ctx, &machine.Guest{ID: "abcdefghij", Dir: dir, Memory: 256 * api.MiB}, api.Resources{Memory: 128 * api.MiB})
	if !api.IsCode(err, api.CodeTimeout) {
		t.Error(err)
	}
}
