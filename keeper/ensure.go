package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
)

// Ensure connects to the keeper of a socket, or starts one if none listens
// there. A started keeper leads a session of its own and outlives the caller:
// under systemd it stays in the caller's unit, which therefore must say
// KillMode=process, unless the keeper has a unit of its own. Callers that
// race for the start get the same keeper.
func Ensure(ctx context.Context, socket, binary string, log *slog.Logger) (c *Client, started bool, err error) {
	if c, err = Connect(ctx, socket); !nobody(err) {
		return c, false, err
	}
	lock, err := os.OpenFile(lockPath(socket), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, api.Errorf(api.CodeInternal, "start a keeper: %w", err)
	}
	defer lock.Close()
	// Another one has it while it starts a keeper, which is bounded too.
	if err := flock(lock); err != nil {
		return nil, false, api.Errorf(api.CodeInternal, "start a keeper: lock %s: %w", lock.Name(), err)
	}
	if c, err = Connect(ctx, socket); !nobody(err) {
		return c, false, err
	}
	pid, err := spawn(ctx, socket, binary)
	if err != nil {
		return nil, false, err
	}
	if log != nil {
		log.Info("a keeper was started", "pid", pid, "socket", socket)
	}
	c, err = Connect(ctx, socket)
	return c, err == nil, err
}

// nobody tells whether an error of Connect means that no keeper is there:
// no socket, a stale one, or one whose keeper is just ending.
func nobody(err error) bool {
	return err != nil && (gone(err) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED))
}

const spawnTimeout = 10 * time.Second

// spawn starts a keeper and waits for its word.
func spawn(ctx context.Context, socket, binary string) (pid int, err error) {
	fail := func(err error) (int, error) {
		return 0, api.Errorf(api.CodeUnavailable, "start the keeper %s: %w", binary, err).
			WithHint("see %s", logPath(socket))
	}
	output, err := os.OpenFile(logPath(socket), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fail(err)
	}
	defer output.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer ready.Close()
	p, err := os.StartProcess(binary, []string{"cleave-keeper", "--socket", socket}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", envReady + "=3"},
		Files: []*os.File{nil, output, output, theirs},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	theirs.Close()
	if err != nil {
		return fail(err)
	}
	go func() { _, _ = p.Wait() }() // ends with the keeper; if it outlives this process, init waits

	ready.SetReadDeadline(time.Now().Add(spawnTimeout))
	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	word, err := io.ReadAll(io.LimitReader(ready, 4<<10))
	if err == nil && strings.TrimSpace(string(word)) != readyOK {
		err = errors.New("it ended at once")
		if text := strings.TrimSpace(string(word)); text != "" {
			err = errors.New(text)
		}
	}
	if err != nil {
		_ = p.Kill()
		return fail(err)
	}
	return p.Pid, nil
}
