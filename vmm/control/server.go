package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxConnections bounds how many are served at a time.
const maxConnections = 16

// Serve answers on a listener until ctx ends, and returns when nobody is
// served any more. It closes the listener.
func Serve(ctx context.Context, l *net.UnixListener, m Machine) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	places := make(chan struct{}, maxConnections)
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		select {
		case places <- struct{}{}:
		default:
			c.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			serve(ctx, c, m)
		})
	}
}

// serve answers one connection until it ends, or ctx does.
func serve(ctx context.Context, c *net.UnixConn, m Machine) {
	stop := context.AfterFunc(ctx, func() { _ = c.CloseRead() }) // a reply on its way is sent
	defer stop()
	defer c.Close()
	in := &reader{conn: c}
	defer in.close()
	for {
		line, err := in.line()
		if err != nil {
			return
		}
		b, err := json.Marshal(answer(ctx, line, in.take, m))
		if err != nil {
			return
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return
		}
	}
}

// answer does what a line asks for. take hands over n files that came with it.
func answer(ctx context.Context, line []byte, take func(n int) ([]*os.File, error), m Machine) reply {
	var r request
	if err := strict(line, &r); err != nil {
		return reply{Error: fmt.Sprintf("a request that is none: %v", err)}
	}
	files, err := take(r.Files)
	if err != nil {
		return reply{ID: r.ID, Error: err.Error()}
	}
	v, ok := verbs[r.Do]
	switch {
	case !ok:
		err = fmt.Errorf("there is no request %q", r.Do)
	case len(files) < v.least || len(files) > v.most:
		err = fmt.Errorf("%s comes with %d to %d files, not with %d", r.Do, v.least, v.most, len(files))
	}
	if err != nil {
		closeAll(files)
		return reply{ID: r.ID, Error: err.Error()}
	}
	result, err := v.do(ctx, m, r.Args, files)
	if err != nil {
		return reply{ID: r.ID, Error: err.Error()}
	}
	out := reply{ID: r.ID}
	if result != nil {
		if out.Result, err = json.Marshal(result); err != nil {
			return reply{ID: r.ID, Error: err.Error()}
		}
	}
	return out
}

// verb is how a request is done, and with how many files it comes.
type verb struct {
	least, most int
	do          func(ctx context.Context, m Machine, args json.RawMessage, files []*os.File) (any, error)
}

// verbs are the requests that there are.
var verbs = map[string]verb{
	"status":       asked(Machine.Status),
	"metrics":      asked(Machine.Metrics),
	"pause":        plain(Machine.Pause),
	"resume":       plain(Machine.Resume),
	"power-button": plain(Machine.PowerButton),
	"reset":        plain(Machine.Reset),
	"stop":         plain(Machine.Stop),
	"remove":       with(Machine.Remove),
	"set-limits":   with(Machine.SetLimits),
	"set-memory":   with(Machine.SetMemory),
	"resize-disk":  with(Machine.ResizeDisk),
	"mark-disk":    answered(Machine.MarkDisk),
	"changed":      answered(Machine.Changed),
	"forget-mark":  with(Machine.ForgetMark),
	"add-disk": withFiles(1, 2, func(m Machine, ctx context.Context, d Disk, files []*os.File) error {
		var changes *os.File
		if len(files) > 1 {
			changes = files[1]
		}
		return m.AddDisk(ctx, d, files[0], changes)
	}),
	"add-net": withFiles(1, maxFiles, Machine.AddNet),
	"migrate": {1, maxFiles, func(ctx context.Context, m Machine, args json.RawMessage, files []*os.File) (any, error) {
		var v Migrate
		if err := strict(args, &v); err != nil {
			closeAll(files)
			return nil, err
		}
		return m.Migrate(ctx, v, files)
	}},
	"migration":        asked(Machine.Migration),
	"cancel-migration": plain(Machine.CancelMigration),
	"settle-migration": with(Machine.SettleMigration),
	"save": withFiles(2, 2, func(m Machine, ctx context.Context, o Save, files []*os.File) error {
		return m.Save(ctx, o, files[0], files[1])
	}),
}

func asked[T any](f func(Machine, context.Context) (T, error)) verb {
	return verb{do: func(ctx context.Context, m Machine, _ json.RawMessage, _ []*os.File) (any, error) { return f(m, ctx) }}
}

func plain(f func(Machine, context.Context) error) verb {
	return verb{do: func(ctx context.Context, m Machine, _ json.RawMessage, _ []*os.File) (any, error) {
		return nil, f(m, ctx)
	}}
}

func answered[T, R any](f func(Machine, context.Context, T) (R, error)) verb {
	return verb{do: func(ctx context.Context, m Machine, args json.RawMessage, _ []*os.File) (any, error) {
		var v T
		if err := strict(args, &v); err != nil {
			return nil, err
		}
		return f(m, ctx, v)
	}}
}

func with[T any](f func(Machine, context.Context, T) error) verb {
	return withFiles(0, 0, func(m Machine, ctx context.Context, v T, _ []*os.File) error { return f(m, ctx, v) })
}

func withFiles[T any](least, most int, f func(Machine, context.Context, T, []*os.File) error) verb {
	return verb{least, most, func(ctx context.Context, m Machine, args json.RawMessage, files []*os.File) (any, error) {
		var v T
		if err := strict(args, &v); err != nil {
			closeAll(files)
			return nil, err
		}
		return nil, f(m, ctx, v, files)
	}}
}

// strict parses one object, and nothing that it doesn't know.
func strict(b []byte, v any) error {
	if len(b) == 0 {
		b = []byte("{}")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is more behind it")
	}
	return nil
}

// reader takes lines and files off a connection.
type reader struct {
	conn  *net.UnixConn
	buf   []byte
	files []*os.File
}

// line returns the next line, without its end. It is valid until the next
// call.
func (r *reader) line() ([]byte, error) {
	for {
		if i := bytes.IndexByte(r.buf, '\n'); i >= 0 {
			line := bytes.Clone(r.buf[:i])
			r.buf = append(r.buf[:0], r.buf[i+1:]...)
			return line, nil
		}
		if len(r.buf) > maxLine {
			return nil, errors.New("a line that doesn't end")
		}
		if err := r.more(); err != nil {
			return nil, err
		}
	}
}

func (r *reader) more() error {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, k, _, _, err := r.conn.ReadMsgUnix(b, oob)
	if err != nil {
		return err
	}
	r.buf = append(r.buf, b[:n]...)
	messages, err := unix.ParseSocketControlMessage(oob[:k])
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			r.files = append(r.files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	if len(r.files) > maxFiles {
		return errors.New("more files than anybody asked for")
	}
	return nil
}

// take hands over the first n files that came.
func (r *reader) take(n int) ([]*os.File, error) {
	if n < 0 || n > len(r.files) {
		return nil, fmt.Errorf("%d files came instead of %d", len(r.files), n)
	}
	files := r.files[:n:n]
	r.files = append([]*os.File(nil), r.files[n:]...)
	return files, nil
}

func (r *reader) close() { closeAll(r.files) }

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
