package storage

import (
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
)

// An id names directory entries and mount points of the drivers. It may not
// begin with a hyphen, so that it is never taken for an option, nor be
// longer than what leaves room for a driver's own suffix in a file name.
var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,127}$`)

// CheckID tells whether id can name a volume.
func CheckID(id string) error {
	if validID.MatchString(id) {
		return nil
	}
	return api.Errorf(api.CodeInvalid, "volume id %q has characters other than lower-case letters, digits and hyphens, or is too long", id)
}

const lockPatience = 200 * time.Millisecond

// Lock makes the caller the only user of the pool in dir until it closes the
// file, or dies. Another process (or another Lock in this one) gets an error
// of code busy: two drivers over one pool would each sweep away what the
// other is just making.
func Lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "pool.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, api.Errorf(api.CodeInternal, "lock pool in %s: %w", dir, err)
	}
	// A daemon that was killed while it started a command leaves its lock to
	// that child until the child has executed, a few milliseconds later. There
	// is nothing to wait on for that.
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for deadline := time.Now().Add(lockPatience); err != nil && time.Now().Before(deadline); {
		time.Sleep(lockPatience / 20)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		return nil, api.Errorf(api.CodeBusy, "pool in %s is in use by another daemon: %w", dir, err).
			WithHint("stop that daemon, or give this one another data directory")
	}
	return f, nil
}

// idLocks lets work on different ids run at the same time and work on one id
// one after the other. The zero value is ready.
type idLocks struct {
	mu   sync.Mutex
	held map[string]*idLock
}

type idLock struct {
	mu   sync.Mutex
	uses int // holders and waiters, guarded by idLocks.mu
}

// Lock waits for id; the caller calls unlock once.
func (l *idLocks) Lock(id string) (unlock func()) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*idLock)
	}
	k := l.held[id]
	if k == nil {
		k = new(idLock)
		l.held[id] = k
	}
	k.uses++
	l.mu.Unlock()

	k.mu.Lock()
	return func() {
		k.mu.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.uses--; k.uses == 0 {
			delete(l.held, id)
		}
	}
}
