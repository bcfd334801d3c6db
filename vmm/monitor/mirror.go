package monitor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cleave-project/cleave/vmm/migrate"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
)

// mirror is a disk's content as a volume, for a guest that goes where the disk
// isn't: migrate.Volume at the source, migrate.Sink at the destination.
type mirror struct {
	name   string
	disk   blk.Disk
	device *blk.Device
	size   int64

	changes *blk.Changes // from Begin to End
	mark    uint64
}

// sparse is a disk that knows where it has nothing but zeroes.
type sparse interface {
	Data(off int64) (from, end int64, err error)
}

func newMirror(d *device) (*mirror, error) {
	size, err := d.disk.Size()
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", d.Name, err)
	}
	return &mirror{name: d.Name, disk: d.disk, device: d.Device.Device.(*blk.Device), size: size}, nil
}

// Name implements migrate.Volume.
func (m *mirror) Name() string { return m.name }

// Size implements migrate.Volume and migrate.Sink.
func (m *mirror) Size() int64 { return m.size }

// ReadAt implements migrate.Volume.
func (m *mirror) ReadAt(p []byte, off int64) (int, error) {
	if err := m.disk.Readv([][]byte{p}, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Begin implements migrate.Volume. What the guest writes while it is found out
// where the disk has data is noted as well.
func (m *mirror) Begin() ([]migrate.Range, error) {
	m.changes = blk.NewChanges()
	m.mark = m.changes.Mark()
	m.device.Track(m.changes)
	return m.data()
}

// data is where the disk may have something else than zeroes.
func (m *mirror) data() (out []migrate.Range, err error) {
	s, ok := m.disk.(sparse)
	if !ok {
		return []migrate.Range{{Offset: 0, Size: m.size}}, nil
	}
	for at := int64(0); at < m.size; {
		from, end, err := s.Data(at)
		if err != nil {
			return nil, err
		}
		if from, end = min(from, m.size), min(end, m.size); end > from {
			out = append(out, migrate.Range{Offset: from, Size: end - from})
		}
		at = max(end, from)
	}
	return out, nil
}

// Written implements migrate.Volume.
func (m *mirror) Written() ([]migrate.Range, error) {
	size, err := m.disk.Size()
	if err == nil && size != m.size {
		err = errors.New("it has another size than when the move began")
	}
	if err != nil {
		return nil, fmt.Errorf("disk %q: %w", m.name, err)
	}
	next := m.changes.Mark() // what comes from here on is told by the next call, and maybe by this one too
	list, ok := m.changes.Since(m.mark)
	if !ok {
		return nil, fmt.Errorf("disk %q: what the guest has written to it is forgotten", m.name)
	}
	m.changes.Forget(m.mark)
	m.mark = next
	var out []migrate.Range
	for _, r := range list {
		if r.Size = min(r.Size, m.size-r.Offset); r.Size > 0 {
			out = append(out, migrate.Range(r))
		}
	}
	return out, nil
}

// End implements migrate.Volume.
func (m *mirror) End() error {
	if m.changes != nil {
		m.device.Untrack(m.changes)
		m.changes = nil
	}
	return nil
}

// Blank implements migrate.Sink.
func (m *mirror) Blank() bool {
	if _, ok := m.disk.(sparse); !ok {
		return false
	}
	data, err := m.data()
	return err == nil && len(data) == 0
}

// WriteAt implements migrate.Sink.
func (m *mirror) WriteAt(p []byte, off int64) (int, error) {
	if err := m.disk.Writev([][]byte{p}, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Zero implements migrate.Sink.
func (m *mirror) Zero(off, n int64) error { return m.disk.WriteZeroes(off, n, true) }

// Flush implements migrate.Sink.
func (m *mirror) Flush() error { return m.disk.Flush() }

// mirrors are the disks of some names as volumes.
func (m *Monitor) mirrors(names []string) (out []*mirror, err error) {
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("mirror disk %q: it is named twice", name)
		}
		d := m.find(name)
		if d == nil || d.disk == nil {
			return nil, fmt.Errorf("mirror disk %q: the guest has none of this name that it can write to", name)
		}
		v, err := newMirror(d)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// awaited are the disks whose content is to come, in the order in which the
// source announces them. Both sides have to have been told, so that nobody
// writes over a disk that is shared, or leaves one empty.
func (m *Monitor) awaited(announced []migrate.Info) ([]migrate.Sink, error) {
	var names []string
	for _, v := range announced {
		names = append(names, v.Name)
	}
	for _, d := range m.config.Disks {
		if d.Mirror != slices.Contains(names, d.Name) {
			if d.Mirror {
				return nil, fmt.Errorf("disk %q awaits its content, and the source doesn't send it: it is to be mirrored there, or to be shared here", d.Name)
			}
			return nil, fmt.Errorf("the source sends the content of disk %q, which here isn't to be written over: mirror it here too, or share it", d.Name)
		}
	}
	list, err := m.mirrors(names)
	if err != nil {
		return nil, errors.Join(errors.New("the source sends what there is no disk for"), err)
	}
	var out []migrate.Sink
	for _, v := range list {
		out = append(out, v)
	}
	return out, nil
}
