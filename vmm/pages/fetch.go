package pages

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Sink is a guest's memory that is to be filled.
type Sink interface {
	io.WriterAt
	// Size is in bytes, a multiple of 4096.
	Size() int64
	// Zero makes a part zeroes.
	Zero(off, n int64) error
	// Left is how many bytes haven't come.
	Left() int64
}

// Fetcher fills a memory. What is wanted may be said before it runs.
type Fetcher struct {
	mu    sync.Mutex
	wants []head
	more  chan struct{} // has room for one
}

// NewFetcher is one that nothing is wanted of.
func NewFetcher() *Fetcher { return &Fetcher{more: make(chan struct{}, 1)} }

// Want says what is needed at once. It doesn't wait.
func (f *Fetcher) Want(off, n int64) {
	f.mu.Lock()
	f.wants = append(f.wants, head{offset: off, size: n})
	f.mu.Unlock()
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// Run fills a memory by a connection, which it closes, until nothing is left
// or ctx ends.
func (f *Fetcher) Run(ctx context.Context, conn net.Conn, to Sink) error {
	asking, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(asking, func() { conn.Close() })
	defer stop()
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		f.ask(asking, conn)
	}()
	err := take(conn, to)
	cancel()
	<-asked
	conn.Close()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return fmt.Errorf("fetch the memory of the guest: %w", err)
}

// ask says what is wanted, to who listens: that nobody does is for who reads to
// find out, since all may have been sent.
func (f *Fetcher) ask(ctx context.Context, conn net.Conn) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.more:
		}
		f.mu.Lock()
		wants := f.wants
		f.wants = nil
		f.mu.Unlock()
		var b []byte
		for _, w := range wants {
			b = w.append(b)
		}
		if _, err := conn.Write(b); err != nil {
			return
		}
	}
}

// take puts what comes in its place.
func take(conn io.Reader, to Sink) error {
	if err := readGreeting(conn, to.Size()); err != nil {
		return err
	}
	buffer := make([]byte, MaxPart)
	for to.Left() > 0 {
		h, err := readHead(conn, to.Size())
		switch {
		case err != nil:
		case h.zero:
			err = to.Zero(h.offset, h.size)
		case h.size > MaxPart:
			err = fmt.Errorf("%w: %d bytes come at once", errBroken, h.size)
		default:
			if _, err = io.ReadFull(conn, buffer[:h.size]); err == nil {
				_, err = to.WriteAt(buffer[:h.size], h.offset)
			}
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%w: it ends, and %d bytes are missing", errBroken, to.Left())
		case err != nil:
			return err
		}
	}
	return nil
}
