package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/client"
	"golang.org/x/term"
)

// app is what all commands share: the terminal and the daemon.
type app struct {
	in       io.Reader
	out, err *output.Printer
	now      func() time.Time

	opts   client.Options // as the global flags say
	daemon *client.Client
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{in: stdin, out: output.NewPrinter(stdout), err: output.NewPrinter(stderr), now: time.Now}
}

// client connects to the daemon that flags and environment name.
func (a *app) client() (*client.Client, error) {
	if a.daemon != nil {
		return a.daemon, nil
	}
	o := a.opts
	if o.Host == "" && o.Socket == "" {
		o.Host = os.Getenv("CLEAVE_HOST")
	}
	if o.Socket == "" {
		o.Socket = os.Getenv("CLEAVE_SOCKET")
	}
	if o.CAFile == "" {
		o.CAFile = os.Getenv("CLEAVE_CA_FILE")
	}
	if o.Project == "" {
		o.Project = os.Getenv("CLEAVE_PROJECT")
	}
	if o.Host != "" {
		o.Token = os.Getenv("CLEAVE_TOKEN")
	}
	c, err := client.New(o)
	a.daemon = c
	return c, err
}

func (a *app) close() {
	if a.daemon != nil {
		a.daemon.Close()
	}
}

// terminal returns the descriptor of standard input when it is a terminal.
func (a *app) terminal() (*os.File, bool) {
	f, ok := a.in.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// cancelWait is how long a cancelled operation gets to end.
const cancelWait = 10 * time.Second

// perform begins an operation and waits for it. The user's interrupt cancels
// the operation itself, not only the waiting.
func (a *app) perform(ctx context.Context, rep *progress.Reporter, begin func(context.Context) (*api.Operation, error)) (*api.Operation, error) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// The request isn't interrupted: an operation begun must be known to be
	// cancelled, and beginning one takes no time.
	op, err := begin(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	op, err = a.daemon.Wait(ctx, op, func(now *api.Operation) { rep.Update(now.ID, progress.Of(now)) })
	rep.Finish(op.ID)
	if ctx.Err() == nil || err == nil {
		return op, err
	}
	stop() // a second interrupt ends us at once
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
	defer cancel()
	if op, err = a.daemon.CancelOperation(ctx, op.ID); err != nil {
		return nil, err
	}
	return a.daemon.Wait(ctx, op, nil)
}

// one performs a single operation.
func (a *app) one(ctx context.Context, begin func(context.Context) (*api.Operation, error)) (*api.Operation, error) {
	rep := progress.New(a.err, 0)
	defer rep.Close()
	return a.perform(ctx, rep, begin)
}

// parallel is how many operations are begun at once.
const parallel = 8

// each performs do for every subject, several at once. All errors are
// printed; any makes the command fail.
func (a *app) each(subjects []string, do func(rep *progress.Reporter, subject string) error) error {
	rep := progress.New(a.err, 0)
	if len(subjects) == 1 {
		defer rep.Close()
		return do(rep, subjects[0])
	}
	errs := make([]error, len(subjects))
	room := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for i, s := range subjects {
		room <- struct{}{}
		wg.Go(func() {
			errs[i] = do(rep, s)
			<-room
		})
	}
	wg.Wait()
	rep.Close()
	var failed error
	for i, err := range errs {
		if err != nil {
			a.complain(subjects[i], err)
			failed = statusError(exitFailed)
		}
	}
	return failed
}
