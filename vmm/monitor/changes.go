package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cleave-project/cleave/vmm"
	"github.com/cleave-project/cleave/vmm/control"
	"github.com/cleave-project/cleave/vmm/virtio/blk"
	"github.com/cleave-project/cleave/vmm/virtio/blk/record"
)

// cameHere is why marks that were made before aren't known: their disk was
// written to from another host.
const cameHere = "the guest came from another host"

// tracked is what of a disk is changed.
type tracked struct {
	*record.Record
	disk   blk.Disk
	device *blk.Device
	// elsewhere says that the guest may go on with the disk in another process.
	elsewhere bool
}

// track begins a disk's record, or goes on with it.
func track(b *blk.Device, disk blk.Disk, d Disk, lost string) (*tracked, error) {
	size, err := disk.Size()
	if err != nil {
		return nil, err
	}
	t := &tracked{disk: disk, device: b}
	if lost == "" {
		t.Record, err = record.Open(d.Changes, d.File, size)
	} else {
		t.Record, err = record.New(d.Changes, d.File, size, lost)
	}
	if err != nil {
		return nil, err
	}
	b.Track(t.Record)
	return t, nil
}

// settledHere tells whether the guest was here at its end for sure.
func (m *moves) settledHere() bool {
	s := m.now.State
	return s == "" || s == control.Stayed || s == control.Arrived
}

// end keeps what is to be known of the disk, to which nothing is written any
// more.
func (t *tracked) end() error {
	if t.elsewhere {
		return nil
	}
	// What is on a disk that failed may be neither what was there nor what was
	// written.
	if err := t.device.Metrics().LastError; err != nil && t.Marks() > 0 {
		return fmt.Errorf("which of its blocks were changed isn't kept, since it failed: %w", err)
	}
	size, err := t.disk.Size()
	if err != nil {
		return err
	}
	return t.Keep(size)
}

// grow makes a disk in a file larger. What it has more was changed.
func (t *tracked) grow(f *os.File, size uint64) error {
	before, err := t.disk.Size()
	if err != nil {
		return err
	}
	if err := grow(f, t.device, size); err != nil {
		return err
	}
	t.Change(before, int64(size)-before)
	return nil
}

// onDisk calls f with what is changed of a disk.
func (m *Monitor) onDisk(what, name string, f func(*tracked) error) error {
	d := m.find(name)
	if d == nil || d.tracked == nil {
		return fmt.Errorf("%s of disk %q: there is none of this name that the guest can write to", what, name)
	}
	err := m.with(func(*vmm.Machine) error { return f(d.tracked) })
	if err != nil {
		return fmt.Errorf("%s of disk %q: %w", what, name, err)
	}
	return nil
}

// MarkDisk implements control.Machine.
func (m *Monitor) MarkDisk(_ context.Context, d control.DiskMark) (control.DiskMark, error) {
	err := m.onDisk("mark the changes", d.Name, func(t *tracked) (err error) {
		if d.Mark != "" {
			return errors.New("a mark has no name before it is made")
		}
		d.Mark, err = t.Mark()
		return err
	})
	return d, err
}

// Changed implements control.Machine.
func (m *Monitor) Changed(_ context.Context, s control.ChangedSince) (out control.Changed, err error) {
	return out, m.onDisk("tell the changes", s.Name, func(t *tracked) error {
		if out.Size, err = t.disk.Size(); err != nil {
			return err
		}
		ranges, lost, err := t.Since(s.Mark, out.Size)
		if err != nil {
			return err
		}
		if out.Lost = lost; lost != "" {
			ranges = []blk.Range{{Size: out.Size}}
		}
		// Those that end before were told.
		from := slices.IndexFunc(ranges, func(r blk.Range) bool { return r.Offset+r.Size > s.From })
		if from < 0 {
			from = len(ranges)
		}
		ranges = ranges[from:]
		if len(ranges) > control.MaxRanges {
			ranges = ranges[:control.MaxRanges]
			last := ranges[len(ranges)-1]
			out.Next = last.Offset + last.Size
		}
		out.Ranges = make([][2]int64, len(ranges))
		for i, r := range ranges {
			out.Ranges[i] = [2]int64{r.Offset, r.Size}
		}
		return nil
	})
}

// ForgetMark implements control.Machine.
func (m *Monitor) ForgetMark(_ context.Context, d control.DiskMark) error {
	return m.onDisk("forget a mark", d.Name, func(t *tracked) error { return t.Forget(d.Mark) })
}
