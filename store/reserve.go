package store

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// Free space in bytes that writes leave alone. etcd ends the process when
// its log can't grow, so the least must cover a log segment in the making.
const (
	reserveGrow  = 96 << 20 // what makes the store grow is refused below this
	reserveLeast = 16 << 20 // everything is
	reserveFile  = 80 << 20
)

// reserve is a file that keeps some of the disk for the state. When others
// have filled the disk it is given up, so that guests can still be stopped
// and deleted and their ends recorded; with space again it is made anew.
type reserve struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	held bool
}

func (r *reserve) path() string { return filepath.Join(r.dir, "reserve") }

// room tells whether a change may be written.
func (r *reserve) room(grows bool) error {
	free, err := freeBytes(r.dir)
	if err != nil {
		return nil // not knowing is no reason to refuse; etcd's own error is one
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.held && free > 2*reserveGrow+reserveFile {
		r.hold()
	}
	if grows && free < reserveGrow {
		return r.full(free, reserveGrow)
	}
	if free < reserveLeast && r.held {
		r.log.Error("the disk of the state is full; giving up its reserve", "dir", r.dir)
		r.held = os.Remove(r.path()) != nil
		if free, err = freeBytes(r.dir); err != nil {
			return nil
		}
	}
	if free < reserveLeast {
		return r.full(free, reserveLeast)
	}
	return nil
}

func (r *reserve) full(free, need int64) error {
	return api.Errorf(api.CodeNoSpace, "the disk of %s is full: %s left, %s are kept for the state", r.dir, api.Bytes(free), api.Bytes(need)).
		WithHint("delete images or instances, or free space on that disk")
}

// hold takes the space. Failing that the state lives without.
func (r *reserve) hold() {
	f, err := os.OpenFile(r.path(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, reserveFile); err != nil {
		os.Remove(r.path())
		return
	}
	r.held = true
}

// freeBytes is what root may still write: on ext4 that is more than others
// may, by the share that is reserved for it.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	if os.Geteuid() != 0 {
		return int64(st.Bavail) * st.Bsize, nil
	}
	return int64(st.Bfree) * st.Bsize, nil
}
