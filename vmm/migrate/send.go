package migrate

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrUndecided is that the other side may have the guest, or may not: the
// package comment says what is to be done.
var ErrUndecided = errors.New("who has the guest is undecided: ask the other side")

// Options of Send.
type Options struct {
	// Identity is needed but for connections within the host.
	Identity *Identity
	// Downtime is how long the guest may stand still, 300 ms for 0.
	Downtime time.Duration
	// Throttle allows the guest's processors to be slowed down where it writes
	// faster than the streams carry.
	Throttle bool
	// PostCopy has the guest go on at the destination before all of its memory
	// is there, unless what a first round has left fits the downtime.
	PostCopy bool
	// Progress, if there is one, hears of each round that begins.
	Progress func(Report)
}

const defaultDowntime = 300 * time.Millisecond

// Report is how a migration goes, or went.
type Report struct {
	Phase    string        `json:"phase"`    // copying, switching or following
	Round    int           `json:"round"`    // from 1
	Left     int64         `json:"left"`     // bytes of this round
	Sent     int64         `json:"sent"`     // bytes of volumes that were not zero
	Throttle int           `json:"throttle"` // percent
	Downtime time.Duration `json:"downtime"` // nanoseconds; at most, until the other side's word came
	Total    time.Duration `json:"total"`
}

// sender is a migration at its source.
type sender struct {
	guest   Guest
	volumes []Volume
	blank   []bool // by volume: zeroes needn't be sent at first
	streams []*stream
	o       Options
	began   time.Time
	report  Report
	sent    atomic.Int64
	syncs   uint64
	session string
	handing atomic.Bool // the destination may be ready
	trail   *trail      // with PostCopy, from the switch on
}

// Send moves a guest over connections, which it closes. Without an error the
// guest runs at the other side and stays frozen here; with ErrUndecided it
// stays frozen; with any other it is as it was.
func Send(ctx context.Context, conns []net.Conn, g Guest, o Options) (Report, error) {
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if len(conns) < 1 || len(conns) > maxStreams {
		return Report{}, fmt.Errorf("migrate over %d connections: 1 to %d are possible", len(conns), maxStreams)
	}
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})
	defer stop()
	s := &sender{guest: g, volumes: g.Volumes(), o: o, began: time.Now()}
	if s.o.Downtime <= 0 {
		s.o.Downtime = defaultDowntime
	}
	err := s.open(ctx, conns)
	switch {
	case err != nil:
	case !stop(): // ctx has ended, and the connections with it
		err = ctx.Err()
	default:
		err = s.copy(ctx)
	}
	s.guest.Throttle(0)
	s.tell()
	if err != nil {
		return s.report, fmt.Errorf("migrate: %w", errors.Join(err, context.Cause(ctx)))
	}
	return s.report, nil
}

// follows tells whether a volume may follow its guest.
func (s *sender) follows(volume int) bool {
	f, ok := s.volumes[volume].(Follower)
	return ok && s.o.PostCopy && f.MayFollow()
}

// greet makes streams of connections, and says hello on them.
func (s *sender) greet(ctx context.Context, conns []net.Conn, first hello) error {
	var config *tls.Config
	if s.o.Identity != nil {
		var err error
		if config, err = s.o.Identity.client(); err != nil {
			return err
		}
	}
	s.streams = nil
	for i, c := range conns {
		t, err := secure(ctx, c, config, tls.Client)
		if err != nil {
			return err
		}
		s.streams = append(s.streams, t)
		h := hello{}
		if i == 0 {
			h = first
		}
		h.Version, h.Session, h.Stream, h.Streams, h.Resume = version, s.session, i, len(conns), first.Resume
		b, err := json.Marshal(&h)
		if err != nil {
			return err
		}
		if err := t.send(head{kind: kindHello}, b); err != nil {
			return err
		}
	}
	return nil
}

// open begins a migration.
func (s *sender) open(ctx context.Context, conns []net.Conn) error {
	description, err := s.guest.Description()
	if err != nil {
		return err
	}
	s.session = rand.Text()
	first := hello{Guest: description}
	for i, v := range s.volumes {
		first.Volumes = append(first.Volumes, Info{v.Name(), v.Size(), s.follows(i)})
	}
	if err := s.greet(ctx, conns, first); err != nil {
		return err
	}
	w, err := s.streams[0].next()
	if err != nil {
		return err
	}
	if w.kind != kindWelcome {
		return broken("a frame of kind %d instead of a welcome", w.kind)
	}
	for i := range s.volumes {
		s.blank = append(s.blank, w.offset&(1<<i) != 0) // maxVolumes fit
	}
	return nil
}

// piece is what one stream sends at a time.
type piece struct {
	volume uint8
	zero   bool
	later  bool // it follows the guest
	Range
}

// pieces cuts ranges of a volume.
func pieces(volume int, list []Range, zero bool) (out []piece) {
	for _, r := range list {
		step := int64(maxData)
		if zero {
			step = maxZero
		}
		for ; r.Size > 0; r.Offset, r.Size = r.Offset+step, r.Size-step {
			out = append(out, piece{uint8(volume), zero, false, Range{r.Offset, min(step, r.Size)}})
		}
	}
	return out
}

// round sends pieces over all streams, and waits until they have arrived.
func (s *sender) round(list []piece, first bool) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(s.streams))
	for i, t := range s.streams {
		wg.Go(func() {
			errs[i] = s.carry(t, list, &next, first)
			if errs[i] != nil {
				next.Store(int64(len(list))) // the others needn't go on
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return s.why(err)
	}
	err := s.streams[0].expectWithin(flushing, kindSynced, s.syncs)
	s.syncs++
	return err
}

// why prefers what the other side said to that a stream has ended.
func (s *sender) why(err error) error {
	for _, t := range s.streams[1:] {
		t.Close() // so that it says something, if it hasn't yet
	}
	if _, said := s.streams[0].nextWithin(time.Second); errors.Is(said, errAborted) {
		return said
	}
	return err
}

// carry sends what of a list falls to one stream.
func (s *sender) carry(t *stream, list []piece, next *atomic.Int64, first bool) error {
	buf := make([]byte, maxData)
	for {
		i := next.Add(1) - 1
		if i >= int64(len(list)) {
			return t.send(head{kind: kindSync, offset: s.syncs}, nil)
		}
		p := list[i]
		if p.later || p.zero {
			k := kindZero
			if p.later {
				k = kindLater
			}
			if err := t.put(head{kind: k, volume: p.volume, offset: uint64(p.Offset), size: uint64(p.Size)}, nil); err != nil {
				return err
			}
			continue
		}
		b := buf[:p.Size]
		if _, err := s.volumes[p.volume].ReadAt(b, p.Offset); err != nil {
			return fmt.Errorf("read volume %q: %w", s.volumes[p.volume].Name(), err)
		}
		if err := s.content(t, p, b, first && s.blank[p.volume]); err != nil {
			return err
		}
	}
}

// unit is of what is looked whether it is zero.
const unit = 4096

// content sends a piece's bytes, as few frames, without zeroes where they
// are there.
func (s *sender) content(t *stream, p piece, b []byte, blank bool) error {
	for at := 0; at < len(b); {
		end, zero := at+min(unit, len(b)-at), isZero(b[at:min(at+unit, len(b))])
		for end < len(b) && isZero(b[end:min(end+unit, len(b))]) == zero {
			end = min(end+unit, len(b))
		}
		h := head{kind: kindData, volume: p.volume, offset: uint64(p.Offset) + uint64(at)}
		var err error
		switch {
		case !zero:
			s.sent.Add(int64(end - at))
			err = t.put(h, b[at:end])
		case !blank:
			h.kind, h.size = kindZero, uint64(end-at)
			err = t.put(h, nil)
		}
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}

func (s *sender) tell() {
	s.report.Sent, s.report.Total = s.sent.Load(), time.Since(s.began)
	if s.o.Progress != nil {
		s.o.Progress(s.report)
	}
}
