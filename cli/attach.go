package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/cleave-project/cleave/client"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// attachment says how the user's terminal and a session are joined.
type attachment struct {
	tty   bool // the command has a terminal
	stdin bool
	keys  detachKeys
	open  func(context.Context) (*client.Session, error)
}

// attach joins the user's streams to a session until the command ends. A
// command that ended with another status than 0 is a statusError; a signal
// that had us leave before, a leftError.
func (a *app) attach(ctx context.Context, o attachment) (err error) {
	ctx, leave := context.WithCancelCause(ctx)
	defer func() {
		var left leftError
		if err != nil && errors.As(context.Cause(ctx), &left) {
			err = left
		}
		leave(nil)
	}()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	tty, isTerminal := a.terminal()
	raw := o.tty && o.stdin && isTerminal
	opened := make(chan *client.Session, 1)
	f := &signalled{app: a, signals: signals, opened: opened, tty: o.tty, raw: raw, leave: leave}
	go f.follow(ctx) // until leave
	s, err := o.open(ctx)
	if err != nil {
		return err
	}
	opened <- s
	streams := client.Streams{Stdout: a.out.W, Stderr: a.err.W}
	if o.stdin {
		streams.Stdin = a.in
	}
	if raw {
		old, err := term.MakeRaw(int(tty.Fd()))
		if err != nil {
			s.Detach()
			return err
		}
		defer term.Restore(int(tty.Fd()), old)
		streams.Stdin = o.keys.reader(a.in)
	}
	exit, err := s.Run(ctx, streams)
	if errors.Is(err, client.ErrDetached) {
		fmt.Fprint(a.err.W, "\r\n") // the guest's line stays as it is
	}
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return statusError(exit.Code & 0xff)
	}
	return nil
}

// resize tells the size of the user's terminal, if there is one.
func (a *app) resize(ctx context.Context, s *client.Session) {
	if cols, rows, ok := a.size(); ok {
		_ = s.Resize(ctx, cols, rows)
	}
}

// size is the size of the terminal that output goes to, or input comes from.
func (a *app) size() (cols, rows uint16, ok bool) {
	for _, end := range []any{a.out.W, a.in} {
		f, isFile := end.(*os.File)
		if !isFile {
			continue
		}
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
			return ws.Col, ws.Row, true
		}
	}
	return 0, 0, false
}

// detachKeys is the sequence of keys that leaves a session.
type detachKeys string

func (k *detachKeys) flag(fs *pflag.FlagSet) {
	*k = "\x01q"
	f := fs.VarPF(k, "detach-keys", "", "keys that leave the session, pressed one after the other")
	f.DefValue = "ctrl-a,q"
}

// String, Set and Type make it a flag.
func (k *detachKeys) String() string { return "" }

// Type is the placeholder in help.
func (k *detachKeys) Type() string { return "KEYS" }

// controlKeys are the keys that give a control character together with Ctrl:
// the low five bits of their own.
const controlKeys = "@abcdefghijklmnopqrstuvwxyz[\\]^_"

// Set reads keys such as ctrl-p,ctrl-q; none turns detaching off.
func (k *detachKeys) Set(text string) error {
	*k = ""
	for word := range strings.SplitSeq(text, ",") {
		ctrl, isCtrl := strings.CutPrefix(word, "ctrl-")
		switch {
		case word == "" || word == "none":
		case len(word) == 1:
			*k += detachKeys(word)
		case isCtrl && len(ctrl) == 1 && strings.Contains(controlKeys, ctrl):
			*k += detachKeys(ctrl[0] & 0x1f)
		default:
			return errors.New("write keys like ctrl-a,q")
		}
	}
	return nil
}

// reader passes r on until the keys are found in it; then it ends with
// client.ErrDetached. The first key, pressed twice, is sent once.
func (k detachKeys) reader(r io.Reader) io.Reader {
	if k == "" {
		return r
	}
	return &keyReader{r: r, keys: string(k)}
}

type keyReader struct {
	r       io.Reader
	keys    string
	matched int
}

func (k *keyReader) Read(p []byte) (int, error) {
	for {
		in := make([]byte, max(len(p)-len(k.keys), 1))
		n, err := k.r.Read(in)
		out := p[:0]
		for _, b := range in[:n] {
			switch {
			case b == k.keys[k.matched]:
				if k.matched++; k.matched == len(k.keys) {
					return len(out), client.ErrDetached
				}
			case k.matched == 1 && b == k.keys[0]:
				out, k.matched = append(out, b), 0
			default:
				out, k.matched = append(out, k.keys[:k.matched]...), 0
				if b == k.keys[0] {
					k.matched = 1
				} else {
					out = append(out, b)
				}
			}
		}
		if err != nil {
			out, k.matched = append(out, k.keys[:k.matched]...), 0
		}
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}
