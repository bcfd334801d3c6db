package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
)

const (
	eventsKept    = 4096    // in memory, for followers that come late
	eventsFileMax = 8 << 20 // bytes; then the file is rotated once
)

// eventLog numbers events, keeps the newest in memory and appends all to a
// file, so that numbers and a follower's place survive a restart. A crash may
// cost the last lines of the file, never a line of before: an event tells
// what happened, the truth is in the store.
type eventLog struct {
	path string

	mu     sync.Mutex
	file   *os.File
	size   int64
	next   int64
	recent []api.Event
	more   chan struct{} // closed and replaced when an event comes
}

func openEvents(dir string) (*eventLog, error) {
	l := &eventLog{path: filepath.Join(dir, "events.jsonl"), next: 1, more: make(chan struct{})}
	for _, p := range []string{l.path + ".1", l.path} {
		if err := l.load(p); err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("event log: %w", err)
		}
	}
	return l, l.open()
}

func (l *eventLog) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	l.file, l.size = f, 0
	if st, err := f.Stat(); err == nil {
		l.size = st.Size()
	}
	return nil
}

// load reads a file of events; a line cut short by a crash is passed over.
func (l *eventLog) load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var e api.Event
		if json.Unmarshal(sc.Bytes(), &e) == nil && e.ID >= l.next {
			l.keep(e)
		}
	}
	return sc.Err()
}

func (l *eventLog) keep(e api.Event) {
	l.next = e.ID + 1
	l.recent = append(l.recent, e)
	if len(l.recent) > 2*eventsKept {
		l.recent = slices.Clone(l.recent[len(l.recent)-eventsKept:])
	}
}

// emit records an event and wakes followers.
func (l *eventLog) emit(e api.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.ID, e.Time = l.next, time.Now().UTC()
	l.keep(e)
	if b, err := json.Marshal(e); err == nil && l.file != nil {
		// A full disk costs the copy in the file, not the event.
		n, _ := l.file.Write(append(b, '\n'))
		l.size += int64(n)
	}
	if l.size > eventsFileMax {
		l.rotate()
	}
	close(l.more)
	l.more = make(chan struct{})
}

func (l *eventLog) rotate() {
	if l.file != nil {
		l.file.Close()
	}
	_ = os.Rename(l.path, l.path+".1")
	if l.open() != nil {
		l.file, l.size = nil, 0
	}
}

// read yields events after since, and with Follow those to come until ctx
// ends.
func (l *eventLog) read(ctx context.Context, since Since, yield func(api.Event) error) error {
	l.mu.Lock()
	after := since.ID
	switch {
	case since.ID > 0:
	case !since.Time.IsZero():
		i := sort.Search(len(l.recent), func(i int) bool { return l.recent[i].Time.After(since.Time) })
		if i < len(l.recent) {
			after = l.recent[i].ID - 1
		} else {
			after = l.next - 1
		}
	default:
		after = l.next - 1
	}
	l.mu.Unlock()
	for {
		l.mu.Lock()
		i := sort.Search(len(l.recent), func(i int) bool { return l.recent[i].ID > after })
		batch := slices.Clone(l.recent[i:])
		more := l.more
		l.mu.Unlock()
		for _, e := range batch {
			if err := yield(e); err != nil {
				return err
			}
			after = e.ID
		}
		if len(batch) > 0 {
			continue
		}
		if !since.Follow {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *eventLog) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
