package keeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// watchDir reports changes in a log directory, inotify(7) form.
func watchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, api.Errorf(api.CodeNoResources, "follow the log in %s: %w", dir, err).
			WithHint("see fs.inotify.max_user_instances")
	}
	const mask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		unix.Close(fd)
		if err == unix.ENOENT {
			return nil, api.Errorf(api.CodeNotFound, "follow the log in %s: %w", dir, err)
		}
		return nil, api.Errorf(api.CodeInternal, "follow the log in %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// follow yields what comes, until ctx or ended says that it's enough, or the
// directory is removed.
func (r *logReader) follow(ctx context.Context, events *os.File, ended <-chan struct{}) error {
	enough, cancel := context.WithCancel(ctx)
	defer cancel()
	if ended != nil {
		go func() {
			select {
			case <-ended:
				cancel()
			case <-enough.Done():
			}
		}()
	}
	stop := context.AfterFunc(enough, func() { events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		n, err := events.Read(buf)
		deleted, removed := lookFor(buf[:max(n, 0)])
		last := removed || errors.Is(err, os.ErrDeadlineExceeded)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !last:
			return api.Errorf(api.CodeInternal, "follow the log in %s: %w", r.dir, err)
		}
		if err := r.drain(ctx); err != nil || last {
			return err
		}
		if deleted {
			// An open file in it would keep the directory from reporting
			// its own removal, which is probably what comes next.
			r.close()
		}
	}
}

// lookFor tells whether the current log file was deleted, or the directory
// itself removed.
func lookFor(events []byte) (deleted, removed bool) {
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		size := int(binary.NativeEndian.Uint32(events[12:])) + unix.SizeofInotifyEvent
		event := events[:min(size, len(events))]
		name := bytes.TrimRight(event[unix.SizeofInotifyEvent:], "\x00")
		if mask&unix.IN_DELETE != 0 && string(name) == logCurrent {
			deleted = true
		}
		if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_IGNORED) != 0 {
			removed = true
		}
		events = events[len(event):]
	}
	return deleted, removed
}
