package cli

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/client"
)

// forwarded are the signals that are passed on to a guest's command, and what
// each adds to what a user has insisted. A terminal's interrupt may mean one
// thing that the command does, and be sent to it often; what is sent by others
// means its end.
var forwarded = map[os.Signal]int{
	syscall.SIGINT: 1, syscall.SIGTERM: 2, syscall.SIGHUP: 2,
	syscall.SIGQUIT: 0, syscall.SIGUSR1: 0, syscall.SIGUSR2: 0,
}

// patience is how much a user insists before we leave a command: with the
// third interrupt, or the second signal to end.
const patience = 3

// leaveTime is how long a command that was sent SIGTERM or SIGHUP has to end.
// A guest that gets no CPU doesn't, and whoever sent it waits for us.
var leaveTime = 10 * time.Second

// leftError says that we left a session because of a signal.
type leftError struct{ signal syscall.Signal }

func (e leftError) Error() string { return "left at " + unix.SignalName(e.signal) }

// status is what a shell says of a command that a signal ended.
func (e leftError) status() statusError { return statusError(128 + int(e.signal)) }

// left tells that the guest's command goes on without us, as far as we know.
func (a *app) left(name string, e leftError) error {
	a.complain("", fmt.Errorf("left %s at %s; the command may still be running", name, unix.SignalName(e.signal)))
	return e.status()
}

// signalled is what follows signals while a session is opened and goes on.
type signalled struct {
	app     *app
	signals <-chan os.Signal
	opened  <-chan *client.Session // gets it, once
	// tty: the command has a terminal. raw: ours is in raw mode and makes no
	// signals by itself, so that those that come are meant for us.
	tty, raw bool
	leave    context.CancelCauseFunc
}

// follow hands signals on until ctx ends. It never waits for the guest: what
// is to be sent has a queue of its own, whose last entries are lost when the
// connection is stuck.
func (f *signalled) follow(ctx context.Context) {
	queue := make(chan func(), 16)
	defer close(queue)
	go func() { // ends with the queue, and each entry with ctx
		for send := range queue {
			send()
		}
	}()
	tell := func(send func()) {
		select {
		case queue <- send:
		default:
		}
	}
	var (
		s        *client.Session
		insisted int
		asked    syscall.Signal // to end, and for how long
		late     <-chan time.Time
	)
	for {
		select {
		case <-ctx.Done():
			return
		case s = <-f.opened:
			f.opened = nil
			if f.tty {
				tell(func() { f.app.resize(ctx, s) })
			}
		case <-late:
			f.leave(leftError{asked})
			return
		case got := <-f.signals:
			sig := got.(syscall.Signal)
			switch {
			case sig == syscall.SIGWINCH:
				if f.tty && s != nil {
					tell(func() { f.app.resize(ctx, s) })
				}
				continue
			case s == nil || f.raw, insisted+forwarded[sig] >= patience:
				f.leave(leftError{sig})
				return
			}
			insisted += forwarded[sig]
			if forwarded[sig] > 1 {
				asked, late = sig, time.After(leaveTime)
			}
			tell(func() { _ = s.Signal(ctx, unix.SignalName(sig)) })
		}
	}
}
