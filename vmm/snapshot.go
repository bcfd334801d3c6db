package vmm

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/vmm/acpi"
	"github.com/cleave-project/cleave/vmm/kvm"
	"github.com/cleave-project/cleave/vmm/memory"
)

// A snapshot is two files: the state, in JSON, and the memory as it is laid
// out in the guest without the hole below 4 GiB, with holes for zeroes. One
// that has a base holds of the memory only the pages that were written since,
// and says which.

// Files are where a snapshot is. When it is read, the file of memory may have
// more behind that.
type Files struct{ State, Memory *os.File }

// SaveOptions of Save.
type SaveOptions struct {
	// Changes has only those since the last snapshot saved, which must have
	// been with Track.
	Changes bool
	// Track notes what is written from now on, for a snapshot of Changes. It
	// slows the guest down, the more the less it writes to the same places.
	Track bool
}

// header is what a snapshot says of itself beside the state.
type header struct {
	ID   string
	Base string `json:",omitempty"` // ID of the snapshot before it
	Runs []run  `json:",omitempty"` // with Base: what the file of memory has
	State
}

// maxState bounds the size of a file of state.
const maxState = 64 << 20

// Save writes a snapshot to empty files. A guest that runs is paused only for
// its state and for what it wrote while the rest was copied, and goes on.
func (m *Machine) Save(f Files, o SaveOptions) (err error) {
	m.life.Lock()
	defer m.life.Unlock()
	if m.Absent() > 0 {
		return errArriving
	}
	if m.move != nil {
		return errMoving
	}
	if o.Changes && m.saved == "" {
		return errors.New("save what has changed: there is no snapshot since which that was noted")
	}
	h := header{ID: rand.Text()}
	base := m.saved
	m.saved = "" // until this one is whole
	defer func() {
		if m.saved == "" {
			err = errors.Join(err, m.logDirty(false))
		}
	}()
	changed, err := m.copyRunning(f.Memory, o.Changes)
	if err != nil {
		return fmt.Errorf("save memory: %w", err)
	}
	if !m.paused {
		if err := m.pause(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, m.resume()) }()
	}
	rest, err := m.takeDirty()
	if err != nil {
		return err
	}
	if err := m.copyRuns(f.Memory, m.runs(rest)); err != nil {
		return fmt.Errorf("save memory: %w", err)
	}
	if o.Changes {
		changed.add(rest)
		h.Base, h.Runs = base, m.runs(changed)
	}
	s, err := m.state(m.msrs)
	if err != nil {
		return err
	}
	h.State = *s
	b, err := json.Marshal(&h)
	if err != nil {
		return err
	}
	if _, err := f.State.Write(b); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if o.Track {
		m.saved = h.ID
	}
	return nil
}

// copyRunning copies memory once, or what has changed in it, and notes from
// then on what is written. It returns what it has copied, of changes.
func (m *Machine) copyRunning(to *os.File, changes bool) (pages, error) {
	if !changes {
		if err := m.logDirty(true); err != nil {
			return nil, err
		}
		return nil, m.copyAll(to)
	}
	p, err := m.takeDirty()
	if err != nil {
		return nil, err
	}
	if err := m.copyRuns(to, m.runs(p)); err != nil {
		return nil, err
	}
	return p, to.Truncate(int64(m.memory.FileSize()))
}

// Restore makes a machine from a snapshot and those that it is based on, the
// oldest first. It is paused: Run, and Resume, have it go on. Its guest is told
// that it is of another generation, so that it draws random numbers of its own. Of the Config it
// takes the console and the devices, which are new ones of the same names and
// kinds. The memory is read as the guest asks for it: the oldest file of it
// must stay as it is while the machine is there.
//
// What is in the files may have been tampered with.
func Restore(sys *kvm.System, c Config, layers ...Files) (_ *Machine, err error) {
	m, err := restore(sys, c, layers)
	if err != nil {
		return nil, fmt.Errorf("restore a machine: %w", err)
	}
	return m, nil
}

func restore(sys *kvm.System, c Config, layers []Files) (*Machine, error) {
	if c.HugePages {
		return nil, errors.New("its memory is the snapshot's file, which can't be in huge pages")
	}
	h, runs, err := readLayers(layers)
	if err != nil {
		return nil, err
	}
	return rebuild(sys, c, &h.State, func() (*memory.Memory, error) {
		return privateMemory(layers[0].Memory, h.Memory, h.Pluggable)
	}, func(m *Machine) error {
		for i := 1; i < len(layers); i++ {
			if err := m.readRuns(layers[i].Memory, runs[i]); err != nil {
				return fmt.Errorf("read memory: %w", err)
			}
		}
		return nil
	})
}

// RestoreFrom makes a machine of a snapshot's state, as Restore does, and of
// memory that comes from elsewhere: fetch is given that, has it awaited, and
// fills it from then on. c.Faults is needed.
func RestoreFrom(sys *kvm.System, c Config, state io.Reader, fetch func(Image) error) (*Machine, error) {
	h, err := readState(state)
	if err == nil && c.HugePages {
		err = errors.New("its memory comes by pages of 4 KiB, and not in huge ones")
	}
	if err != nil {
		return nil, fmt.Errorf("restore a machine: %w", err)
	}
	m, err := rebuild(sys, c, &h.State, func() (*memory.Memory, error) {
		return memory.New(h.Memory, memory.Options{Pluggable: h.Pluggable})
	}, func(m *Machine) error {
		m.absent, m.faults = m.memory.NewAbsent(), c.Faults
		if err := m.absent.Later(0, int64(m.memory.FileSize())); err != nil {
			return err
		}
		return fetch(Image{m})
	})
	if err != nil {
		return nil, fmt.Errorf("restore a machine: %w", err)
	}
	return m, nil
}

// readState parses a state and checks all that can be checked without KVM.
func readState(r io.Reader) (*header, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxState+1))
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	if len(b) > maxState {
		return nil, fmt.Errorf("the state has more than %d bytes", maxState)
	}
	h := &header{}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("the state can't be: %w", err)
	}
	next, total := uint64(0), (h.Memory+h.Pluggable)/memory.PageSize
	for _, r := range h.Runs {
		if r.First < next || r.Count == 0 || r.First >= total || r.Count > total-r.First {
			return nil, fmt.Errorf("the state can't be: it has %d pages at %d of %d", r.Count, r.First, total)
		}
		next = r.First + r.Count
	}
	return h, nil
}

// follows tells whether a snapshot has another as its base, nil for none.
func (h *header) follows(base *header) error {
	switch {
	case base == nil && h.Base != "":
		return fmt.Errorf("it has only what changed since snapshot %s, which is missing", h.Base)
	case base != nil && (h.Base != base.ID || h.Memory != base.Memory || h.Pluggable != base.Pluggable):
		return fmt.Errorf("it is based on %q, and not on %s", h.Base, base.ID)
	}
	return nil
}

// fits tells whether a file can be the memory.
func (h *header) fits(f *os.File) error {
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Size() < int64(h.Memory+h.Pluggable):
		return fmt.Errorf("%d bytes of memory are in a file of %d", h.Memory+h.Pluggable, st.Size())
	}
	return nil
}

// rebuild makes a machine of a state and of memory, which fill may complete.
func rebuild(sys *kvm.System, c Config, s *State, ram func() (*memory.Memory, error), fill func(*Machine) error) (_ *Machine, err error) {
	host, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	var cpuid [][]kvm.CPUIDEntry
	for _, cs := range s.CPUs {
		if err := covers(host, cs.CPUID); err != nil {
			return nil, err
		}
		cpuid = append(cpuid, cs.CPUID)
	}
	own, err := ram()
	if err != nil {
		return nil, err
	}
	m, err := assemble(sys, c, own, cpuid)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if err := fill(m); err != nil {
		return nil, err
	}
	if err := m.restore(s, c.Devices); err != nil {
		return nil, err
	}
	if err := m.newGeneration(); err != nil {
		return nil, err
	}
	return m, m.power.press(acpi.EventGeneration)
}

// privateMemory maps a file, of which it takes a duplicate.
func privateMemory(f *os.File, size, pluggable uint64) (*memory.Memory, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	own := os.NewFile(uintptr(fd), f.Name())
	ram, err := memory.MapPluggable(own, size, pluggable, unix.MAP_PRIVATE)
	if err != nil {
		own.Close()
	}
	return ram, err
}

// readRuns puts pages of a file over those that are there.
func (m *Machine) readRuns(from *os.File, list []run) error {
	for _, r := range list {
		for first, left := r.First, r.Count; left > 0; {
			b := m.inFile(first)
			n := min(left*memory.PageSize, uint64(len(b)))
			if _, err := from.ReadAt(b[:n], int64(first)*memory.PageSize); err != nil {
				return err
			}
			first, left = first+n/memory.PageSize, left-n/memory.PageSize
		}
	}
	return nil
}
