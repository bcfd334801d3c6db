package lab

import (
	"testing"
	"time"
)

func TestProgressIsProcessorTimeOrConsole(t *testing.T) {
	const second = time.Second
	begin := time.Now()
	for _, c := range []struct {
		name string
		size func(at time.Duration) int64
		cpu  func(at time.Duration) time.Duration
		want time.Duration // when it stalls; 0: never
	}{
		{"nothing", zero[int64], zero[time.Duration], 30 * second},
		{"idle", zero[int64], func(at time.Duration) time.Duration { return at / 100 }, 30 * second},
		{"busy", zero[int64], func(at time.Duration) time.Duration { return at }, 0},
		{"busy beside many others", zero[int64], func(at time.Duration) time.Duration { return at / 15 }, 0},
		{"idle after a while", zero[int64], func(at time.Duration) time.Duration { return min(at, 60*second) }, 90 * second},
		{"talks", func(at time.Duration) int64 { return int64(at / (20 * second)) }, zero[time.Duration], 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := meter{stall: noProgress, since: begin}
			var got time.Duration
			for at := second; at < 5*time.Minute && got == 0; at += second {
				if m.stalled(begin.Add(at), c.size(at), c.cpu(at)) {
					got = at
				}
			}
			// It looks back a third of the time.
			if got < c.want || got > c.want+noProgress/3 {
				t.Errorf("it stalled after %s, want %s", got, c.want)
			}
		})
	}
}

func zero[T any](time.Duration) (none T) { return none }
