package api

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size. In JSON it is a number of bytes; input may also be a
// string with a unit: KiB, MiB, GiB, TiB (1024) or kB, MB, GB, TB (1000).
type Bytes int64

// Binary units.
const (
	KiB Bytes = 1 << (10 * (iota + 1))
	MiB
	GiB
	TiB
)

var units = map[string]Bytes{
	"": 1, "b": 1,
	"k": KiB, "ki": KiB, "kib": KiB, "kb": 1000,
	"m": MiB, "mi": MiB, "mib": MiB, "mb": 1000 * 1000,
	"g": GiB, "gi": GiB, "gib": GiB, "gb": 1000 * 1000 * 1000,
	"t": TiB, "ti": TiB, "tib": TiB, "tb": 1000 * 1000 * 1000 * 1000,
}

// ParseBytes reads a size such as 512MiB, 1.5G or 4096.
func ParseBytes(s string) (Bytes, error) {
	t := strings.TrimSpace(s)
	i := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	num, unit := t, ""
	if i >= 0 {
		num, unit = t[:i], strings.ToLower(strings.TrimSpace(t[i:]))
	}
	u, ok := units[unit]
	f, err := strconv.ParseFloat(num, 64)
	if !ok || err != nil || f < 0 || f*float64(u) >= math.MaxInt64 {
		return 0, Errorf(CodeInvalid, "%q is not a size", s).WithHint("write a number with a unit, like 512MiB or 20GiB")
	}
	if n, err := strconv.ParseInt(num, 10, 64); err == nil {
		return Bytes(n) * u, nil
	}
	return Bytes(f * float64(u)), nil
}

// written are the units that sizes are written in.
var written = []struct {
	n Bytes
	s string
}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}}

// String prints the size in the largest binary unit that keeps it short.
func (b Bytes) String() string {
	for _, u := range written {
		if b >= u.n {
			s := strconv.FormatFloat(float64(b)/float64(u.n), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + u.s
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}

// Exact writes b in the largest unit of which it is a whole number, so that
// sizes that differ look different, and can be given back.
func (b Bytes) Exact() string {
	for _, u := range written {
		if b >= u.n && b%u.n == 0 {
			return fmt.Sprintf("%d%s", b/u.n, u.s)
		}
	}
	return fmt.Sprintf("%dB", int64(b))
}

// UnmarshalJSON accepts a number of bytes or a string with a unit.
func (b *Bytes) UnmarshalJSON(p []byte) error {
	p = bytes.TrimSpace(p)
	if string(p) == "null" {
		return nil
	}
	v, err := ParseBytes(strings.Trim(string(p), `"`))
	if err == nil {
		*b = v
	}
	return err
}
