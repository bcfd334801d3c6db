package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ledger remembers which kernel parameters of the host were changed, from
// what, and for which daemons. It is a file of the host, not of a daemon:
// several may need the same parameter, and the last to go puts it back. The
// kernel keeps these parameters per network namespace and until the next
// boot, and so does the file's name and place.
type ledger struct{ path string }

// entry is one parameter that was changed.
type entry struct {
	Key    string   `json:"key"`
	Was    string   `json:"was"`
	Set    string   `json:"set"`
	Scopes []string `json:"scopes"`
}

func openLedger() (*ledger, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return nil, fmt.Errorf("identify the network namespace: %w", err)
	}
	return &ledger{path: fmt.Sprintf("/run/cleave-network-%d.json", st.Ino)}, nil
}

// lock keeps the other daemons of the host from changing its network.
func (l *ledger) lock() (unlock func(), err error) {
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// open returns the file, locked until it is closed. The last daemon deletes
// the file, so that what was opened may be it no more.
func (l *ledger) open() (*os.File, error) {
	for {
		f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the list of changed parameters: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", l.path, err)
		}
		opened, err1 := f.Stat()
		current, err2 := os.Stat(l.path)
		if err1 == nil && err2 == nil && os.SameFile(opened, current) {
			return f, nil
		}
		_ = f.Close()
	}
}

func read(f *os.File) []entry {
	var all []entry
	b, err := io.ReadAll(f)
	if err != nil || json.Unmarshal(b, &all) != nil {
		return nil // cut short by a crash: what was before is not known
	}
	return all
}

func write(f *os.File, all []entry) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(append(b, '\n'), 0)
	return err
}

// set gives parameters their values, in order, and claims for the scope what
// others changed before: it may rest on that too. The caller holds the lock.
// The file is written first: a crash between the two is harmless.
func (l *ledger) set(scope string, settings []setting) error {
	f, err := os.OpenFile(l.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the list of changed parameters: %w", err)
	}
	defer func() { _ = f.Close() }()
	all := read(f)
	for i := range all {
		if !slices.Contains(all[i].Scopes, scope) {
			all[i].Scopes = append(all[i].Scopes, scope)
		}
	}
	for _, s := range settings {
		was, err := readSysctl(s.key)
		if err != nil {
			return fmt.Errorf("read %s: %w", s.key, err)
		}
		listed := slices.ContainsFunc(all, func(e entry) bool { return e.Key == s.key })
		if !listed && was != s.value { // else it is as the host's owner has it
			all = append(all, entry{Key: s.key, Was: was, Set: s.value, Scopes: []string{scope}})
		}
	}
	if err := write(f, all); err != nil {
		return fmt.Errorf("write %s: %w", l.path, err)
	}
	for _, s := range settings {
		if err := writeSysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

// release gives up a scope's claims. Parameters that no scope needs go back
// to what they were, the last changed first, unless somebody has changed
// them since; what makes the host a router stays when keep says so.
func (l *ledger) release(scope string, keep func() bool) error {
	f, err := l.open()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var rest []entry
	var errs []error
	for _, e := range slices.Backward(read(f)) {
		e.Scopes = slices.DeleteFunc(e.Scopes, func(s string) bool { return s == scope })
		if len(e.Scopes) > 0 {
			rest = append(rest, e)
			continue
		}
		forwards := strings.Contains(e.Key, "forward") || strings.HasSuffix(e.Key, "/accept_ra")
		now, err := readSysctl(e.Key)
		if err != nil || now != e.Set || forwards && keep() {
			continue
		}
		errs = append(errs, writeSysctl(e.Key, e.Was))
	}
	slices.Reverse(rest)
	if len(rest) == 0 {
		return errors.Join(append(errs, os.Remove(l.path))...)
	}
	return errors.Join(append(errs, write(f, rest))...)
}
