package probe

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Figure is how much of one kind of work was done in a second.
type Figure struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"` // of work; per second
	Rate float64 `json:"rate"`
}

// works are the kinds of work: each does a bit and returns how much.
var works = []struct {
	name, unit string
	do         func(dir string) (float64, error)
}{
	{"computing", "Msteps", func(string) (float64, error) {
		const n = 2_000_000
		if turn(1, n) == 0 {
			return 0, fmt.Errorf("the generator stands still")
		}
		return n / 1e6, nil
	}},
	{"system calls", "calls", func(string) (float64, error) {
		const n = 2000
		for range n {
			_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		}
		return n, nil
	}},
	{"processes", "processes", func(string) (float64, error) {
		if err := exec.Command(self(), "exit", "0").Run(); err != nil {
			return 0, err
		}
		return 1, nil
	}},
	{"page faults", "faults", faults},
	{"disk writes", "MiB", diskWrite},
	{"disk reads", "MiB", diskRead},
	{"network", "MiB", loopback},
}

// Measure does each kind of work for about the given time.
func Measure(dir string, each time.Duration) ([]Figure, error) {
	var out []Figure
	for _, w := range works {
		if _, err := w.do(dir); err != nil { // the first time is not typical
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		amount, start := 0.0, time.Now()
		for time.Since(start) < each {
			n, err := w.do(dir)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", w.name, err)
			}
			amount += n
		}
		out = append(out, Figure{Name: w.name, Unit: w.unit, Rate: amount / time.Since(start).Seconds()})
	}
	return out, os.RemoveAll(filepath.Join(dir, workFile))
}

func faults(string) (float64, error) {
	const pages = 1024
	m, err := unix.Mmap(-1, 0, pages*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return 0, err
	}
	_ = unix.Madvise(m, unix.MADV_NOHUGEPAGE)
	for i := 0; i < len(m); i += 4096 {
		m[i] = 1
	}
	return pages, unix.Munmap(m)
}

const (
	workFile = "work"
	workSize = 4 << 20
)

func diskWrite(dir string) (float64, error) {
	f, err := os.OpenFile(filepath.Join(dir, workFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	for n := 0; n < workSize; n += len(buf) {
		if _, err := f.Write(buf); err != nil {
			return 0, err
		}
	}
	return workSize / (1 << 20), f.Sync()
}

// diskRead reads past the page cache where the file system lets it be dropped.
func diskRead(dir string) (float64, error) {
	f, err := os.Open(filepath.Join(dir, workFile))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return 0, err
	}
	n, err := io.CopyBuffer(io.Discard, onlyReader{f}, make([]byte, 256<<10))
	return float64(n) / (1 << 20), err
}

// onlyReader hides what would copy otherwise than by read and write.
type onlyReader struct{ io.Reader }

func loopback(string) (float64, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	const size = 4 << 20
	sent := make(chan error, 1)
	go func() {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_, err = c.Write(make([]byte, size))
			c.Close()
		}
		sent <- err
	}()
	c, err := l.Accept()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	n, err := io.CopyBuffer(io.Discard, onlyReader{c}, make([]byte, 256<<10))
	if err == nil {
		err = <-sent
	}
	return float64(n) / (1 << 20), err
}
