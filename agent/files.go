package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"

	"github.com/hashicorp/yamux"

	"github.com/cleave-project/cleave/agent/wire"
	"github.com/cleave-project/cleave/api"
)

// chunk is the size of the pieces in which data streams are written.
const chunk = 128 << 10

// maxName bounds what a guest calls a file or a link's target (PATH_MAX).
const maxName = 4 << 10

// Stat describes path, and not what it points to when it is a symbolic link.
func (c *Client) Stat(ctx context.Context, name string) (FileInfo, error) {
	what := fmt.Sprintf("looking at %s in the guest", name)
	if err := absolute(name); err != nil {
		return FileInfo{}, err
	}
	reply, err := c.ask(ctx, what, &wire.Request{Op: wire.OpStat, Path: name})
	if err != nil {
		return FileInfo{}, err
	}
	f := reply.File
	if f == nil || len(f.Name) > maxName || len(f.Target) > maxName || f.Size < 0 {
		return FileInfo{}, broken(what, errUnexpected)
	}
	return *f, nil
}

func absolute(name string) error {
	if !path.IsAbs(name) {
		return api.Errorf(api.CodeInvalid, "path %q in the guest must be absolute", name).WithField("path")
	}
	return nil
}

// Put extracts a tar stream below path, which must be a directory. Names and
// links in the stream can't lead out of it. What exists is replaced file by
// file, each in one step; a directory is never replaced by something else nor
// the other way round, and one that exists keeps its owner and mode. Device nodes
// and attributes that a guest may not have are left out; that is an error
// with code unsupported which lists them, after all else has been extracted.
//
// Put reads tar to its end and no further; when the guest refuses what it
// gets, Put returns after tar's next Read.
func (c *Client) Put(ctx context.Context, path string, tar io.Reader) error {
	if err := absolute(path); err != nil {
		return err
	}
	return c.put(ctx, fmt.Sprintf("copying to %s in the guest", path), &wire.Request{Op: wire.OpPut, Path: path, Streams: 1}, tar)
}

// put makes a request that takes a stream.
func (c *Client) put(ctx context.Context, what string, q *wire.Request, tar io.Reader) error {
	call, err := c.open(ctx, what, q)
	if err != nil {
		return err
	}
	defer call.close()

	var result error
	var reader sync.WaitGroup
	ended := make(chan struct{})
	reader.Go(func() {
		defer close(ended)
		var reply *wire.Reply
		if reply, result = call.reply(ctx, what); result == nil && !reply.Done {
			result = broken(what, errUnexpected)
		}
	})
	sent := send(call.data[0], tar, ended)
	if sent != nil && !errors.Is(sent, errAnswered) {
		call.close() // the guest must not take what it has for all
		reader.Wait()
		// Only a failure of the source comes before the guest's own answer.
		return fmt.Errorf("%s: %w", what, sent)
	}
	reader.Wait()
	return result
}

// errAnswered means that the other side answered before it had all data.
var errAnswered = errors.New("answered early")

// send copies src to s and ends it, until the other side has answered. It
// returns errAnswered when writing failed: then the reason is the answer.
func send(s *yamux.Stream, src io.Reader, ended <-chan struct{}) error {
	// A write that waits for a guest that has answered and reads no more is
	// woken by closing, which also is what makes all later ones fail.
	var waker sync.WaitGroup
	sent := make(chan struct{})
	waker.Go(func() {
		select {
		case <-ended:
			s.SetWriteDeadline(past)
		case <-sent:
		}
	})
	defer waker.Wait()
	defer close(sent)
	buf := make([]byte, chunk)
	for {
		select {
		case <-ended:
			return errAnswered
		default:
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return errAnswered
			}
		}
		if err == io.EOF {
			s.Close()
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Get is a tar stream of path, whose names begin with path's last element
// (with "." for the root and for a path that ends in "/."). A symbolic link
// is not followed. Sockets are left out; that and a file that shrank while it
// was read is an error at the stream's end. The stream is the guest's word:
// whoever unpacks it must expect any name in it. ctx bounds the whole.
func (c *Client) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	if err := absolute(path); err != nil {
		return nil, err
	}
	return c.get(ctx, fmt.Sprintf("copying %s from the guest", path), &wire.Request{Op: wire.OpGet, Path: path, Streams: 1})
}

// get makes a request that gives a stream.
func (c *Client) get(ctx context.Context, what string, q *wire.Request) (io.ReadCloser, error) {
	call, err := c.open(ctx, what, q)
	if err != nil {
		return nil, err
	}
	reply, err := call.reply(ctx, what)
	if err == nil && !reply.Started {
		err = broken(what, errUnexpected)
	}
	if err != nil {
		call.close()
		return nil, err
	}
	return &tarStream{ctx: ctx, call: call, what: what, stop: context.AfterFunc(ctx, call.close)}, nil
}

// tarStream ends with io.EOF only when the guest has said that it was all.
type tarStream struct {
	ctx  context.Context
	call *call
	what string
	stop func() bool
	err  error
}

func (t *tarStream) Read(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	n, err := t.call.data[0].Read(p)
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		var reply *wire.Reply
		if reply, err = t.call.next(t.what); err == nil {
			err = io.EOF
			if !reply.Done {
				err = broken(t.what, errUnexpected)
			}
		}
	}
	if t.ctx.Err() != nil && err != io.EOF {
		err = interrupted(t.ctx, t.what)
	}
	t.err = err
	return n, err
}

// Close ends the stream early, or frees it after its end.
func (t *tarStream) Close() error {
	t.stop()
	t.call.close()
	return nil
}
