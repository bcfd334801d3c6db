package control

import "context"

// DiskMark is a mark of what of a disk is changed from there on. It is made by
// MarkDisk, for which it is empty.
type DiskMark struct {
	Name string `json:"name"`
	Mark string `json:"mark,omitempty"`
}

// ChangedSince asks for what was changed since a mark, from an offset on.
type ChangedSince struct {
	DiskMark
	From int64 `json:"from,omitempty"`
}

// Changed is what of a disk was changed, in whole blocks but for its end.
type Changed struct {
	Size int64 `json:"size"` // of the disk
	// Lost is why the mark isn't known. Then all may have changed, which
	// Ranges say.
	Lost string `json:"lost,omitempty"`
	// Ranges are an offset and a number of bytes each.
	Ranges [][2]int64 `json:"ranges"`
	// Next is where there is more; 0 if this is all.
	Next int64 `json:"next,omitempty"`
}

// MaxRanges is how many a reply has at most, so that it fits in a line.
const MaxRanges = 1000

// MarkDisk implements Machine.
func (c *Client) MarkDisk(ctx context.Context, d DiskMark) (out DiskMark, err error) {
	return out, c.ask(ctx, "mark-disk", d, &out)
}

// Changed implements Machine.
func (c *Client) Changed(ctx context.Context, s ChangedSince) (out Changed, err error) {
	return out, c.ask(ctx, "changed", s, &out)
}

// ForgetMark implements Machine.
func (c *Client) ForgetMark(ctx context.Context, d DiskMark) error {
	return c.ask(ctx, "forget-mark", d, nil)
}

// AllChanged asks until there is no more.
func AllChanged(ctx context.Context, m Machine, d DiskMark) (Changed, error) {
	s := ChangedSince{DiskMark: d}
	var all [][2]int64
	for {
		c, err := m.Changed(ctx, s)
		if err != nil {
			return c, err
		}
		if c.Lost != "" {
			return c, nil // also if that was found out in the middle
		}
		all = append(all, c.Ranges...)
		if c.Next <= s.From {
			c.Ranges, c.Next = all, 0
			return c, nil
		}
		s.From = c.Next
	}
}
