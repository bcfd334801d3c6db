package migrate

import "io"

// Range is a part of a volume, in bytes.
type Range struct{ Offset, Size int64 }

// Volume is what is copied while the guest writes to it: its memory, or a
// disk.
type Volume interface {
	Name() string
	Size() int64
	io.ReaderAt
	// Begin has it noted from now on what is written, and returns what may be
	// other than zero, in order. End ends that, and may be called more than
	// once.
	Begin() ([]Range, error)
	End() error
	// Written is what was written since Begin, or the last call.
	Written() ([]Range, error)
}

// Sink is a volume at the destination. ReadAt isn't needed: what is written
// isn't read before the guest runs.
type Sink interface {
	Size() int64
	// Blank tells that all of it is zero at the beginning.
	Blank() bool
	io.WriterAt
	// Zero makes a part of it zero.
	Zero(off, n int64) error
	// Flush returns when all that was written stays, whatever the host's fate:
	// after each round, so that the last one's takes little of the downtime.
	Flush() error
}

// Follower is a Volume of which a part may be sent when the guest runs elsewhere
// already: it doesn't change any more then.
type Follower interface {
	Volume
	MayFollow() bool
}

// LaterSink is a Sink of which a part may come when the guest runs already.
type LaterSink interface {
	Sink
	// Later says that a part comes later, whatever there is now.
	Later(off, n int64) error
	// Await has who needs such a part wait for it, from now on. want is told
	// what is needed, under locks, and doesn't wait. What is written is for
	// such parts alone, and leaves alone what isn't missing any more.
	Await(want func(Range)) error
	// Missing are the parts that haven't come; what of them is needed is
	// wanted anew.
	Missing() []Range
	// Abandon ends the waiting: nothing more will come.
	Abandon()
}

// Guest is a machine that may leave. Its methods are called one after the
// other, but for those of volumes' ReadAt.
type Guest interface {
	// Description is what a Place needs for Prepare.
	Description() ([]byte, error)
	Volumes() []Volume
	// Throttle takes a share of their time from the guest's processors.
	Throttle(percent int)
	// Freeze pauses the guest, and nobody but Thaw lets it go on: it returns
	// its state, with everything written that devices had to write.
	Freeze() ([]byte, error)
	// Thaw lets it go on as it was before Freeze.
	Thaw() error
}

// Place is where a guest may arrive. Its methods are called one after the
// other, each once, but for those of sinks.
type Place interface {
	// Prepare makes room for a guest, and returns a sink for each volume.
	Prepare(description []byte, volumes []Info) ([]Sink, error)
	// Load puts the guest together from its state and what is in the sinks. It
	// doesn't run.
	Load(state []byte) error
	// Run lets it run. After an error it does not run, and never will.
	Run() error
}

// Info is a volume as the source describes it.
type Info struct {
	Name string
	Size int64
	// Later is that a part may come when the guest runs: its Sink has to be a
	// LaterSink.
	Later bool `json:",omitempty"`
}

// holes are what ranges, which are in order, leave of a volume.
func holes(list []Range, size int64) (out []Range) {
	at := int64(0)
	for _, r := range list {
		if r.Offset > at {
			out = append(out, Range{at, r.Offset - at})
		}
		at = max(at, r.Offset+r.Size)
	}
	if at < size {
		out = append(out, Range{at, size - at})
	}
	return out
}
