package disk

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/internal/cell"
)

// Limits on qemu-img. What it needs grows with the tables of a disk, not with
// the disk; its threads have 8 MiB of stack each.
const (
	convertMemory = 2 << 30
	convertTime   = 10 * time.Minute
	convertPerGiB = 30 * time.Second
	convertSlack  = 1 << 20
)

// Convert writes the disk that h describes in src to dst, an empty file, as
// raw with holes. dir is any directory (see cell.Command). Progress is told
// percent; it may be nil.
func Convert(ctx context.Context, dst, src *os.File, h Header, dir string, progress func(percent float64)) error {
	from, err := source(h)
	if err != nil {
		return err
	}
	err = qemuImg(ctx, []string{"convert", "-p", "-W", "-m", "8", "-S", "4k", "-O", "raw", from, "/out"}, job{
		in: src, out: dst, dir: dir, limit: h.Size + convertSlack, size: h.Size, progress: progress,
	})
	if err != nil {
		return err
	}
	st, err := dst.Stat()
	if err != nil {
		return err
	}
	if st.Size() < h.Size || st.Size() > h.Size+convertSlack {
		return corrupt("its headers contradict each other: one says that the disk has %d bytes, and it came to %d", h.Size, st.Size())
	}
	return nil
}

// source tells qemu-img all that it would otherwise find out by itself, from
// bytes that others wrote.
func source(h Header) (string, error) {
	file := map[string]any{"driver": "file", "filename": "/in", "locking": "off"}
	if h.Offset != 0 {
		// Members of a tar archive are padded to whole blocks.
		file = map[string]any{"driver": "raw", "offset": h.Offset, "size": (h.Length + 511) &^ 511, "file": file}
	}
	node := map[string]any{"driver": h.Format, "file": file}
	switch h.Format {
	case "qcow2":
		node["backing"] = nil
	case "vpc":
		// Else the size follows from cylinders, heads and sectors, or from
		// who wrote the file.
		node["force_size_calc"] = "current_size"
	}
	b, err := json.Marshal(node)
	return "json:" + string(b), err
}

// job is what qemu-img works on.
type job struct {
	in, out     *os.File // seen as /in and /out
	dir         string
	limit, size int64 // most bytes of out; bytes of the disk
	progress    func(percent float64)
}

func qemuImg(ctx context.Context, args []string, j job) error {
	c := cell.Command{
		Args:     append([]string{"qemu-img"}, args...),
		Files:    map[string]*os.File{"in": j.in, "out": j.out},
		Writable: map[string]bool{"out": true},
		Dir:      j.dir, Memory: convertMemory, FileSize: uint64(j.limit),
		CPU: convertTime + time.Duration(j.size>>30)*convertPerGiB,
	}
	if j.progress != nil {
		r, w := io.Pipe()
		c.Output = w
		var reader sync.WaitGroup
		reader.Go(func() { readProgress(r, j.progress) })
		defer reader.Wait()
		defer w.Close()
	}
	err := cell.Run(ctx, c)
	if errors.Is(err, exec.ErrNotFound) {
		return api.Errorf(api.CodeUnsupported, "disks are converted by qemu-img, which this host doesn't have").
			WithHint("install qemu-utils (on Fedora qemu-img)")
	}
	failure, ran := errors.AsType[*cell.Failure](err)
	if !ran || ctx.Err() != nil {
		return err
	}
	switch {
	case strings.Contains(failure.Stderr, syscall.ENOSPC.Error()), strings.Contains(failure.Stderr, "No space left"):
		return syscall.ENOSPC
	case failure.Signal() == syscall.SIGKILL:
		return api.Errorf(api.CodeTimeout, "qemu-img was stopped after %v of work on it", c.CPU)
	}
	return corrupt("qemu-img can't read it: %s", lastWords(failure.Stderr))
}

// lastWords is what qemu-img complained about, without its own name and the
// names that files have in the cell.
func lastWords(stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	last := lines[len(lines)-1]
	last = strings.TrimPrefix(last, "qemu-img: ")
	if rest, ok := strings.CutPrefix(last, "Could not open 'json:"); ok {
		if _, why, ok := strings.Cut(rest, "}': "); ok {
			last = why
		}
	}
	if last == "" {
		return "it doesn't say why"
	}
	return last
}

// readProgress reads what qemu-img -p prints: "    (12.34/100%)\r".
func readProgress(r *io.PipeReader, progress func(float64)) {
	defer r.Close()
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\r')
		if err != nil {
			return
		}
		_, number, ok := strings.Cut(line, "(")
		number, _, found := strings.Cut(number, "/")
		if percent, err := strconv.ParseFloat(number, 64); ok && found && err == nil {
			progress(percent)
		}
	}
}
