package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// The channels of a stream: the first byte of each message.
const (
	channelStdin byte = iota
	channelStdout
	channelStderr
	channelControl
)

const (
	maxMessage  = 4 << 20  // bytes of a client's message; data is passed on piece by piece
	maxControl  = 4 << 10  // bytes of a client's control message
	smallPiece  = 4 << 10  // what a stream begins to read at once; most are terminals
	pieceSize   = 64 << 10 // what a busy one comes to
	pongTimeout = 10 * time.Second
)

// order is a control message of the client.
type order struct {
	Resize *windowSize `json:"resize"`
	Signal string      `json:"signal"`
	EOF    bool        `json:"eof"`
}

type windowSize struct {
	Cols uint16 `json:"cols"`
	Rows uint16 `json:"rows"`
}

// bridge connects a WebSocket to a session. What one side doesn't take, the
// other isn't asked for: output is read when the client has taken what was
// before, and the client is read when the guest has. So a guest that doesn't
// read its input holds up control messages that are behind that input.
type bridge struct {
	conn    *websocket.Conn
	session session
	ping    time.Duration
	tcp     bool

	blocked atomic.Bool           // the guest isn't taking its input
	lost    atomic.Pointer[error] // why output could not be read to its end
}

// errGone ends a bridge whose client left.
var errGone = errors.New("the client has left")

// run returns when the session has ended and the client knows, or the client
// is gone. It closes the session.
func (b *bridge) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	// A context that ends during its use takes the connection down at once,
	// and then the client would never learn why.
	use := context.WithoutCancel(ctx)
	var output, others sync.WaitGroup
	var once sync.Once
	hangUp := func() { once.Do(func() { _ = b.session.Close() }) }
	stop := context.AfterFunc(ctx, hangUp) // releases whoever reads from or writes to the session
	defer func() {
		cancel(nil)
		stop()
		hangUp()
		_ = b.conn.CloseNow() // releases whoever uses the connection
		others.Wait()
	}()
	output.Go(func() { b.send(use, cancel, channelStdout, b.session.Stdout()) })
	if r := b.session.Stderr(); r != nil {
		output.Go(func() { b.send(use, cancel, channelStderr, r) })
	}
	others.Go(func() { b.receive(use, cancel) })
	others.Go(func() { b.keepAlive(ctx, cancel) })

	complete := make(chan struct{})
	others.Go(func() { output.Wait(); close(complete) })
	select {
	case <-complete:
	case <-ctx.Done(): // the output may be held up by the client
	}
	if ctx.Err() != nil {
		return b.leave(ctx)
	}
	exit, err := b.session.Exit(ctx) // a command may close its output long before it ends
	if ctx.Err() != nil {
		return b.leave(ctx)
	}
	if lost := b.lost.Load(); err == nil && lost != nil {
		err = *lost
	}
	if err != nil {
		finish(use, b.conn, final{Error: problemOf(err).apiError()})
		return err
	}
	finish(use, b.conn, final{Exit: &exit})
	return nil
}

// leave says goodbye where the server is the one that goes.
func (b *bridge) leave(ctx context.Context) error {
	cause := context.Cause(ctx)
	if bad, ok := errors.AsType[*badMessage](cause); ok {
		_ = b.conn.Close(websocket.StatusPolicyViolation, bad.text)
	} else if errors.Is(cause, context.Canceled) {
		_ = b.conn.Close(websocket.StatusGoingAway, "the daemon is stopping")
	}
	return cause
}

// send passes output on until its end. The piece is read behind the byte
// that names the channel, so that it is never copied.
func (b *bridge) send(ctx context.Context, cancel context.CancelCauseFunc, channel byte, r io.Reader) {
	buf := make([]byte, 1+smallPiece)
	for {
		buf[0] = channel
		n, err := r.Read(buf[1:])
		if n > 0 {
			if err := b.conn.Write(ctx, websocket.MessageBinary, buf[:1+n]); err != nil {
				cancel(fmt.Errorf("%w: %w", errGone, err))
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				b.lost.Store(&err)
			}
			return
		}
		if n == len(buf)-1 {
			buf = grown(buf, 1+pieceSize)
		}
	}
}

// grown is a larger buffer, for a stream that fills the one it has.
func grown(buf []byte, most int) []byte {
	if len(buf) >= most {
		return buf
	}
	return make([]byte, min(4*len(buf), most))
}

// badMessage is a client's mistake.
type badMessage struct{ text string }

func (e *badMessage) Error() string { return e.text }

// receive takes the client's messages until it leaves.
func (b *bridge) receive(ctx context.Context, cancel context.CancelCauseFunc) {
	in := &input{w: b.session.Stdin(), blocked: &b.blocked}
	buf := make([]byte, smallPiece)
	for {
		kind, r, err := b.conn.Reader(ctx)
		if err == nil && kind != websocket.MessageBinary {
			err = &badMessage{"messages must be binary"}
		}
		if err == nil {
			var n int64
			if n, err = b.message(r, in, buf); n >= int64(len(buf)) {
				buf = grown(buf, pieceSize)
			}
		}
		if err != nil {
			cancel(fmt.Errorf("%w: %w", errGone, err))
			return
		}
	}
}

// message handles one message and tells how much input it held.
func (b *bridge) message(r io.Reader, in *input, buf []byte) (int64, error) {
	n, err := r.Read(buf[:1])
	if n == 0 {
		if err == io.EOF {
			return 0, &badMessage{"a message must name its channel"}
		}
		return 0, err
	}
	switch buf[0] {
	case channelStdin:
		return io.CopyBuffer(in, onlyReader{r}, buf)
	case channelControl:
		p, err := io.ReadAll(io.LimitReader(r, maxControl+1))
		if err != nil {
			return 0, err
		}
		o, err := parseOrder(p)
		if err != nil {
			return 0, err
		}
		b.obey(o, in)
		return 0, nil
	}
	return 0, &badMessage{fmt.Sprintf("channel %d is not the client's", buf[0])}
}

func parseOrder(p []byte) (order, error) {
	var o order
	if len(p) > maxControl {
		return o, &badMessage{"a control message is too long"}
	}
	if err := json.Unmarshal(p, &o); err != nil {
		return o, &badMessage{"a control message can't be read"}
	}
	return o, nil
}

// obey does what the client asks as far as it makes sense now: a command
// that has just ended has no size and takes no signal, and that is no error.
func (b *bridge) obey(o order, in *input) {
	if o.Resize != nil {
		_ = b.session.Resize(o.Resize.Cols, o.Resize.Rows)
	}
	if o.Signal != "" {
		_ = b.session.Signal(o.Signal)
	}
	if o.EOF {
		in.close()
	}
}

// keepAlive pings, so that whatever stands between doesn't take the
// connection for dead, and a client that left shows also while its input is
// held up. A missing pong proves nothing: it may be behind that input.
// A unix socket shows the end of its peer to the reader.
func (b *bridge) keepAlive(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(b.ping)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !b.tcp && !b.blocked.Load() {
			continue
		}
		// One ping at a time: the next one is what shows who left after this.
		pong, done := context.WithTimeout(ctx, min(b.ping, pongTimeout))
		err := b.conn.Ping(pong)
		done()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			cancel(fmt.Errorf("%w: %w", errGone, err))
			return
		}
	}
}

// input is the guest's standard input. Once it takes no more, what comes is
// dropped: the command may have closed it and still run.
type input struct {
	w       io.WriteCloser
	blocked *atomic.Bool
}

func (i *input) Write(p []byte) (int, error) {
	if i.w == nil {
		return len(p), nil
	}
	i.blocked.Store(true)
	_, err := i.w.Write(p)
	i.blocked.Store(false)
	if err != nil {
		i.close()
	}
	return len(p), nil
}

func (i *input) close() {
	if i.w != nil {
		_ = i.w.Close()
		i.w = nil
	}
}

// onlyReader hides WriteTo, so that io.CopyBuffer uses the buffer.
type onlyReader struct{ io.Reader }
