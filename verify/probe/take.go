package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Taken is what an attempt to take more got.
type Taken struct {
	Amount  float64 `json:"amount"`
	Seconds float64 `json:"seconds,omitempty"`
	End     string  `json:"end,omitempty"` // what stopped it
}

// Spin uses all CPUs, with more threads than there are, for a time.
func Spin(d time.Duration) Taken {
	var wg sync.WaitGroup
	start := time.Now()
	n := 2 * runtime.NumCPU()
	runtime.GOMAXPROCS(n)
	for range n {
		wg.Go(func() {
			if spin(d) == 0 {
				panic("the generator stands still")
			}
		})
	}
	wg.Wait()
	var cpu unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &cpu)
	used := time.Duration(cpu.Utime.Nano() + cpu.Stime.Nano())
	return Taken{Amount: used.Seconds(), Seconds: time.Since(start).Seconds()}
}

// Eat takes memory in a child, 4 MiB at a time, until it gets no more, is
// killed, or has the given number of MiB.
func Eat(mib int) Taken {
	out, err := exec.Command(self(), "eat-here", strconv.Itoa(mib)).Output()
	t := Taken{Amount: float64(strings.Count(string(out), "\n") * 4), End: "nothing"}
	if err != nil {
		t.End = err.Error()
	}
	return t
}

// EatHere takes memory and says so in lines.
func EatHere(mib int) error {
	for range mib / 4 {
		m, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return err
		}
		for i := 0; i < len(m); i += 4096 {
			m[i] = 1
		}
		if _, err := os.Stdout.WriteString("4\n"); err != nil {
			return err
		}
	}
	return nil
}

// Multiply starts processes until no more can be started, or there are n.
func Multiply(n int) Taken {
	var all []*exec.Cmd
	defer func() {
		for _, c := range all {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	for range n {
		// The smallest there is: it takes one thread, not a runtime's several.
		c := exec.Command("/bin/sleep", "1000")
		if err := c.Start(); err != nil {
			return Taken{Amount: float64(len(all)), End: describe(err)}
		}
		all = append(all, c)
	}
	return Taken{Amount: float64(n), End: "nothing"}
}

// Fill writes to a file past the page cache until the disk is full, or the
// file has n MiB.
func Fill(dir string, mib int) Taken {
	name := filepath.Join(dir, "fill")
	defer os.Remove(name)
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
	if errors.Is(err, unix.EINVAL) { // this file system can't
		f, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY|unix.O_DSYNC, 0o600)
	}
	if err != nil {
		return Taken{End: describe(err)}
	}
	defer f.Close()
	// Mapped, since direct writes want aligned memory.
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return Taken{End: describe(err)}
	}
	defer func() { _ = unix.Munmap(buf) }()
	x := uint64(1)
	start := time.Now()
	for i := range mib {
		for j := 0; j < len(buf); j += 8 { // nothing that compresses away
			x = turn(x, 1)
			binary.NativeEndian.PutUint64(buf[j:], x)
		}
		if _, err := f.Write(buf); err != nil {
			return Taken{Amount: float64(i), End: describe(err), Seconds: time.Since(start).Seconds()}
		}
	}
	return Taken{Amount: float64(mib), End: "nothing", Seconds: time.Since(start).Seconds()}
}

// Send sends to an address for a time and says how many MiB went.
func Send(address string, d time.Duration) Taken {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return Taken{End: describe(err)}
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(d))
	buf := make([]byte, 64<<10)
	sent, start := 0, time.Now()
	for {
		n, err := c.Write(buf)
		sent += n
		if err != nil {
			t := Taken{Amount: float64(sent) / (1 << 20), Seconds: time.Since(start).Seconds()}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.End = describe(err)
			}
			return t
		}
	}
}

// Sink takes what is sent to a port, until it is ended.
func Sink(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() { // ends with the connection
			defer c.Close()
			buf := make([]byte, 64<<10)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
	}
}

// Reach tries to connect, and says what came of it: an empty End is a
// connection.
func Reach(address string) Taken {
	c, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return Taken{End: describe(err)}
	}
	c.Close()
	return Taken{Amount: 1}
}

// See looks for processes with mark in their command line, and sends the
// others that can be seen, but for ourselves and the first, a signal that
// would end them. Amount is how many with the mark there were.
func See(mark string) Taken {
	es, err := os.ReadDir("/proc")
	if err != nil {
		return Taken{End: describe(err)}
	}
	t := Taken{}
	for _, e := range es {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmd, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.Contains(string(cmd), mark) {
			t.Amount++
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	// Numbers that can't be seen may be signalled all the same.
	for pid := 2; pid < 1<<15; pid++ {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err != nil {
			if unix.Kill(pid, unix.SIGKILL) == nil {
				t.End = "signalled what it can't see"
			}
		}
	}
	return t
}

// Find tells whether any of the places where a host's file might show holds it.
func Find(path string) Taken {
	t := Taken{}
	for _, prefix := range []string{"", "/proc/1/root", "/..", "/proc/self/cwd/../../../.."} {
		if _, err := os.Stat(prefix + path); err == nil {
			t.Amount++
		}
	}
	return t
}
