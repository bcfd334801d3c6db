package keeper

import (
	"bytes"
	"time"
)

// A log file holds one record a line, in the form that Kubernetes gave to
// container logs (CRI, design-proposals/node/kubelet-cri-logging.md):
//
//	2006-01-02T15:04:05.000000000Z stdout F a whole line
//	2006-01-02T15:04:05.000000000Z stderr P the beginning of a
//
// F is a full line, whose newline is the record's; P is a part, of which more
// follows in the stream's next record. What a guest wrote without a newline
// is written at once, as a part: nothing waits in memory for the rest of its
// line, and so a killed keeper loses nothing that it has read.
const (
	// timeFormat is RFC 3339 in UTC with all nine digits, of constant width.
	timeFormat = "2006-01-02T15:04:05.000000000Z"
	maxRecord  = 64 << 10

	streamStdout = "stdout"
	streamStderr = "stderr"
	streamKeeper = "keeper"
)

// appendRecords appends the records for what a guest wrote to a stream.
func appendRecords(b []byte, now time.Time, stream string, data []byte) []byte {
	var head [len(timeFormat) + 1 + 6 + 1]byte
	prefix := now.UTC().AppendFormat(head[:0], timeFormat)
	prefix = append(append(append(prefix, ' '), stream...), ' ')
	for len(data) > 0 {
		b = append(b, prefix...)
		line, rest, full := bytes.Cut(data, []byte{'\n'})
		if full {
			b = append(b, "F "...)
		} else {
			b = append(b, "P "...)
		}
		b = append(append(b, line...), '\n')
		data = rest
	}
	return b
}

// record is a parsed line of a log file; its data is part of that line.
type record struct {
	time   time.Time
	stream string
	full   bool
	data   []byte
}

// parseRecord parses a line without its newline.
func parseRecord(line []byte) (r record, ok bool) {
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || len(stamp) != len(timeFormat) {
		return r, false
	}
	t, err := time.Parse(timeFormat, string(stamp))
	if err != nil {
		return r, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(rest) < 2 || rest[1] != ' ' {
		return r, false
	}
	switch string(stream) {
	case streamStdout:
		r.stream = streamStdout
	case streamStderr:
		r.stream = streamStderr
	case streamKeeper:
		r.stream = streamKeeper
	default:
		return r, false
	}
	switch rest[0] {
	case 'F':
		r.full = true
	case 'P':
	default:
		return r, false
	}
	r.time, r.data = t, rest[2:]
	return r, true
}

// entry copies the record out of the buffer that it was parsed from.
func (r record) entry() LogEntry {
	data := make([]byte, len(r.data), len(r.data)+1)
	copy(data, r.data)
	if r.full {
		data = append(data, '\n')
	}
	return LogEntry{Time: r.time, Stream: r.stream, Data: data}
}
