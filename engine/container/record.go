package container

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Names in a guest's runtime directory.
const (
	socketName = "agent.sock"
	recordName = "guest.json"
)

// record is what a later daemon, or a later keeper, must know of a guest.
type record struct {
	ID        string    `json:"id"`
	PID       int       `json:"pid"`
	StartTime uint64    `json:"startTime"`
	Started   time.Time `json:"started"`
	Terminal  bool      `json:"terminal,omitempty"`
	System    bool      `json:"system,omitempty"`
	Image     string    `json:"image"`
}

func (e *Engine) writeRecord(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// On a tmpfs, read after a crash of ours and not of the host's: a rename
	// is enough.
	name := filepath.Join(e.dir(r.ID), recordName)
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return fmt.Errorf("keep record of guest: %w", err)
	}
	return os.Rename(name+".new", name)
}

func (e *Engine) readRecord(id string) (r record, err error) {
	b, err := os.ReadFile(filepath.Join(e.dir(id), recordName))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read record of guest %s: %w", id, err)
	}
	return r, nil
}

// records are those of all runtime directories; nil for one without.
func (e *Engine) records() (map[string]*record, error) {
	es, err := os.ReadDir(e.opts.Run)
	if err != nil {
		return nil, err
	}
	rs := map[string]*record{}
	for _, d := range es {
		if !d.IsDir() || !idPattern.MatchString(d.Name()) {
			continue
		}
		rs[d.Name()] = nil
		if r, err := e.readRecord(d.Name()); err == nil {
			rs[d.Name()] = &r
		}
	}
	return rs, nil
}

// alive tells whether the recorded process still runs.
func (r *record) alive() bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(r.PID) + "/stat")
	if err != nil {
		return false
	}
	state, started, err := parseStat(string(b))
	return err == nil && started == r.StartTime && state != 'Z' && state != 'X'
}

// startTime is a process's start in ticks since boot: with the PID it names a
// process for good.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, started, err := parseStat(string(b))
	return started, err
}

// parseStat reads fields 3 and 22 of a stat line (proc_pid_stat(5)): state
// and start time. The second field is the command in parentheses, and may
// hold any byte; no later field has a parenthesis.
func parseStat(stat string) (state byte, started uint64, err error) {
	if i := strings.LastIndexByte(stat, ')'); i >= 0 {
		if f := strings.Fields(stat[i+1:]); len(f) > 19 {
			started, err = strconv.ParseUint(f[19], 10, 64)
			return f[0][0], started, err
		}
	}
	return 0, 0, fmt.Errorf("process status %q has no start time", stat)
}
