package guests

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-project/cleave/keeper"
)

// recordName is the record's in a guest's runtime directory.
const recordName = "guest.json"

// Record is what a later daemon, or a later keeper, must know of a guest.
type Record struct {
	ID        string    `json:"id"`
	PID       int       `json:"pid"`
	StartTime uint64    `json:"startTime"`
	Started   time.Time `json:"started"`
	Terminal  bool      `json:"terminal,omitempty"` // of the keeper's guest
	System    bool      `json:"system,omitempty"`
	Image     string    `json:"image,omitempty"`
	// Machine is what only an engine of machines must know.
	Machine *Machine `json:"machine,omitempty"`
}

// Machine is the part of a record that only machines have; sizes in bytes.
type Machine struct {
	Firmware    bool  `json:"firmware,omitempty"` // a system of its own
	Terminal    bool  `json:"terminal,omitempty"` // the entry point has one
	Stdin       bool  `json:"stdin,omitempty"`    // so has it an input
	Maintenance bool  `json:"maintenance,omitempty"`
	Memory      int64 `json:"memory"`          // the machine's RAM at start
	Overhead    int64 `json:"overhead"`        // of the monitor
	Limit       int64 `json:"limit,omitempty"` // of memory, as asked for
	Paced       bool  `json:"paced,omitempty"` // the monitor limits disk I/O
	// UIDBase is the host's id of the monitor's wall; 0 in records of old.
	UIDBase uint32 `json:"uidBase,omitempty"`
}

// process names a process for good; the zero value any.
type process struct {
	pid     int
	started uint64
}

func (r *Record) process() process {
	if r == nil {
		return process{}
	}
	return process{r.PID, r.StartTime}
}

func (p process) is(g keeper.Guest) bool {
	return p.pid == 0 || p.pid == g.PID && p.started == g.StartTime
}

// Write keeps a record.
func (b *Book) Write(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// On a tmpfs, read after a crash of ours and not of the host's: a rename
	// is enough.
	name := filepath.Join(b.Dir(r.ID), recordName)
	if err := os.WriteFile(name+".new", text, 0o600); err != nil {
		return fmt.Errorf("keep record of guest: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.own[r.ID]; !ok {
		return nil // its end has been told
	}
	b.own[r.ID] = r.process()
	if s := b.starting[r.ID]; s != nil {
		for _, g := range s.early {
			s.end(g)
		}
		s.early = nil
	}
	return nil
}

// Read reads the record of a guest. Without one the error is os.ErrNotExist.
func (b *Book) Read(id string) (r Record, err error) {
	text, err := os.ReadFile(filepath.Join(b.Dir(id), recordName))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("read record of guest %s: %w", id, err)
	}
	return r, nil
}

// records are those of all runtime directories; nil for one without.
func (b *Book) records() (map[string]*Record, error) {
	es, err := os.ReadDir(b.opts.Run)
	if err != nil {
		return nil, err
	}
	rs := map[string]*Record{}
	for _, d := range es {
		if !d.IsDir() || !IDPattern.MatchString(d.Name()) {
			continue
		}
		rs[d.Name()] = nil
		if r, err := b.Read(d.Name()); err == nil {
			rs[d.Name()] = &r
		}
	}
	return rs, nil
}
