package image

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// within says in what an error happened, and keeps its code and hint, or
// finds the code that fits.
func within(what string, err error) error {
	if err == nil {
		return nil
	}
	var coded *api.Error
	switch {
	case errors.As(err, &coded):
		// The hint is at the end of the whole message once, not in it.
		text := strings.Replace(err.Error(), coded.Error(), coded.Message, 1)
		e := api.Errorf(coded.Code, "%s: %w", what, &reworded{text, err}).WithField(coded.Field)
		if coded.Hint != "" {
			e = e.WithHint("%s", coded.Hint)
		}
		return e
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return api.Errorf(api.CodeNoSpace, "%s: the disk of the image store is full: %w", what, err).
			WithHint("free space, or remove images that nothing uses with cleave image prune")
	case errors.Is(err, context.DeadlineExceeded):
		return api.Errorf(api.CodeTimeout, "%s: %w", what, err)
	case errors.Is(err, context.Canceled):
		return api.Errorf(api.CodeCancelled, "%s: %w", what, err)
	}
	return api.Errorf(api.CodeInternal, "%s: %w", what, err)
}

// reworded is an error in other words.
type reworded struct {
	text string
	err  error
}

func (r *reworded) Error() string { return r.text }
func (r *reworded) Unwrap() error { return r.err }

// needSpace fails when the store's disk can't take n more bytes.
func (s *Store) needSpace(n int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.opts.Dir, &st); err != nil {
		return within("look at free space", err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free < n {
		return api.Errorf(api.CodeNoSpace, "it needs at least %v, and %s has %v free", api.Bytes(n), s.opts.Dir, api.Bytes(free)).
			WithHint("free space, or remove images that nothing uses with cleave image prune")
	}
	return nil
}

// allocated is what a file really takes: roots have holes.
func allocated(st os.FileInfo) api.Bytes {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return api.Bytes(sys.Blocks * 512)
	}
	return api.Bytes(st.Size())
}
