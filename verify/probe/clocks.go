package probe

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

var clocks = []check{
	{"monotonic time never goes back", func(string) (string, error) {
		var last int64
		for range 200_000 {
			now, err := clock(unix.CLOCK_MONOTONIC)
			if err != nil {
				return "", err
			}
			if now < last {
				return "no", nil
			}
			last = now
		}
		return "yes", nil
	}},
	{"sleep doesn't end early", func(string) (string, error) {
		from, err := clock(unix.CLOCK_MONOTONIC)
		if err != nil {
			return "", err
		}
		want := unix.NsecToTimespec(int64(20 * time.Millisecond))
		for {
			err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, 0, &want, &want)
			if err == nil {
				break
			}
			if err != unix.EINTR {
				return "", err
			}
		}
		to, err := clock(unix.CLOCK_MONOTONIC)
		if err != nil {
			return "", err
		}
		return is(to-from >= int64(20*time.Millisecond))
	}},
	{"clocks advance together", func(string) (string, error) {
		var from, to [2]int64
		for i, id := range []int32{unix.CLOCK_MONOTONIC, unix.CLOCK_REALTIME} {
			var err error
			if from[i], err = clock(id); err != nil {
				return "", err
			}
		}
		time.Sleep(200 * time.Millisecond)
		for i, id := range []int32{unix.CLOCK_MONOTONIC, unix.CLOCK_REALTIME} {
			var err error
			if to[i], err = clock(id); err != nil {
				return "", err
			}
		}
		apart := (to[0] - from[0]) - (to[1] - from[1])
		return is(max(apart, -apart) < int64(20*time.Millisecond))
	}},
	{"resolution is a nanosecond", func(string) (string, error) {
		var ts unix.Timespec
		if err := unix.ClockGetres(unix.CLOCK_MONOTONIC, &ts); err != nil {
			return "", err
		}
		return is(ts.Nano() == 1)
	}},
	{"boot time is not before monotonic time", func(string) (string, error) {
		mono, err := clock(unix.CLOCK_MONOTONIC)
		if err != nil {
			return "", err
		}
		boot, err := clock(unix.CLOCK_BOOTTIME)
		if err != nil {
			return "", err
		}
		return is(boot >= mono)
	}},
	{"CPU time grows with work", func(string) (string, error) {
		from, err := clock(unix.CLOCK_PROCESS_CPUTIME_ID)
		if err != nil {
			return "", err
		}
		runtime.KeepAlive(spin(20 * time.Millisecond))
		to, err := clock(unix.CLOCK_PROCESS_CPUTIME_ID)
		if err != nil {
			return "", err
		}
		return is(to > from)
	}},
	{"the year is this one's", func(string) (string, error) { return time.Now().UTC().Format("2006-01-02"), nil }},
}

func clock(id int32) (int64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(id, &ts)
	return ts.Nano(), err
}

// spin keeps a CPU busy.
func spin(d time.Duration) uint64 {
	x := uint64(88172645463325252)
	for end := time.Now().Add(d); time.Now().Before(end); {
		x = turn(x, 10_000)
	}
	return x
}

// turn is n steps of xorshift (Marsaglia, 2003), which no compiler leaves out
// as long as the result is used.
func turn(x uint64, n int) uint64 {
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}
