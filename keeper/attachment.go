package keeper

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"sync"

	"github.com/cleave-project/cleave/api"
)

// Attachment is a live connection to a guest's standard streams. Stdout and
// Stderr must both be read until they end, and at the same time: output that
// nobody reads makes the guest wait, and after 30 seconds the keeper gives
// the attachment up, which both then report instead of io.EOF. Close detaches
// and leaves the guest alone.
type Attachment struct {
	client   *Client
	conn     *conn
	id       string
	terminal bool

	stdin          *attachedInput
	stdout, stderr *io.PipeReader

	done chan struct{} // closed when the last frame has come
	end  Guest
	err  error // why there is no end
}

// Attach connects to a guest's standard streams. Several may be attached at
// once. A guest that has ended can be attached to for its Replay.
func (c *Client) Attach(ctx context.Context, id string, opts AttachOptions) (*Attachment, error) {
	conn, r, logs, err := c.open(ctx, &request{Op: opAttach, ID: id, Attach: &opts})
	if err != nil {
		return nil, err
	}
	if r.Guest == nil {
		closeFiles(logs)
		conn.Close()
		return nil, api.Errorf(api.CodeInternal, "attach to guest %s: the keeper's answer has no guest", id)
	}
	a := &Attachment{client: c, conn: conn, id: id, terminal: r.Guest.Terminal, done: make(chan struct{})}
	if opts.Stdin {
		a.stdin = &attachedInput{conn: conn}
	}
	var stdout, stderr *io.PipeWriter
	a.stdout, stdout = io.Pipe()
	a.stderr, stderr = io.Pipe()
	go func() { // ends with the connection, or when Close ends both pipes
		defer close(a.done)
		err := replay(logs, r.LogEnd, stdout, stderr)
		closeFiles(logs)
		if err == nil {
			err = a.receive(stdout, stderr)
		}
		a.err = err
		stdout.CloseWithError(err) // nil is io.EOF
		stderr.CloseWithError(err)
	}()
	return a, nil
}

// replay writes what the log files have before end.
func replay(logs []*os.File, end int64, stdout, stderr io.Writer) error {
	for i, f := range logs {
		r := newRecordReader(f)
		if i == len(logs)-1 {
			r.limit = end
		}
		for {
			rec, ok, err := r.next()
			if err != nil {
				return api.Errorf(api.CodeInternal, "replay: read %s: %w", f.Name(), err)
			}
			if !ok {
				break
			}
			w := stdout
			if rec.stream != streamStdout {
				w = stderr
			}
			if _, err := w.Write(rec.entry().Data); err != nil {
				return err
			}
		}
	}
	return nil
}

// receive takes frames until the last one.
func (a *Attachment) receive(stdout, stderr io.Writer) error {
	r := bufio.NewReader(a.conn)
	var buf []byte
	for {
		kind, data, err := readFrame(r, buf)
		if err != nil {
			return a.client.failed("attach to guest "+a.id, err)
		}
		buf = data
		switch kind {
		case frameStdout:
			_, err = stdout.Write(data)
		case frameStderr:
			_, err = stderr.Write(data)
		case frameExit:
			return json.Unmarshal(data, &a.end)
		case frameError:
			e := new(api.Error)
			if err := json.Unmarshal(data, e); err != nil {
				return err
			}
			return e
		}
		if err != nil {
			return err
		}
	}
}

// Terminal tells whether the guest has a terminal.
func (a *Attachment) Terminal() bool { return a.terminal }

// Stdin is nil if it was not asked for. Closing it is an end of file for the
// guest, for good; with a terminal it types the end-of-file character.
func (a *Attachment) Stdin() io.WriteCloser {
	if a.stdin == nil {
		return nil
	}
	return a.stdin
}

// Stdout is what the guest writes; with a terminal, all of it.
func (a *Attachment) Stdout() io.Reader { return a.stdout }

// Stderr is nil with a terminal.
func (a *Attachment) Stderr() io.Reader {
	if a.terminal {
		return nil
	}
	return a.stderr
}

// Resize sets the terminal's size.
func (a *Attachment) Resize(cols, rows uint16) error {
	// A connection of its own, so that it need not wait behind input that
	// the guest doesn't read.
	_, err := a.client.call(context.Background(), &request{Op: opResize, ID: a.id, Cols: cols, Rows: rows})
	return err
}

// Exit waits until the guest has ended and all output has been read.
func (a *Attachment) Exit(ctx context.Context) (api.ExitStatus, error) {
	select {
	case <-a.done:
	case <-ctx.Done():
		return api.ExitStatus{}, a.client.failed("wait for guest "+a.id, ctx.Err())
	}
	if a.err != nil {
		return api.ExitStatus{}, a.err
	}
	return a.end.Exit(), nil
}

// Close detaches.
func (a *Attachment) Close() error {
	err := a.conn.Close()
	a.stdout.Close()
	a.stderr.Close()
	<-a.done
	return err
}

// attachedInput sends input as frames.
type attachedInput struct {
	conn *conn

	mu     sync.Mutex
	closed bool
}

func (in *attachedInput) Write(p []byte) (n int, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return 0, os.ErrClosed
	}
	for len(p) > 0 {
		piece := p[:min(len(p), bufferSize)]
		if _, err := in.conn.Write(appendFrame(nil, frameStdin, piece)); err != nil {
			return n, err
		}
		n, p = n+len(piece), p[len(piece):]
	}
	return n, nil
}

func (in *attachedInput) Close() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil
	}
	in.closed = true
	_, err := in.conn.Write(appendFrame(nil, frameEOF, nil))
	return err
}
