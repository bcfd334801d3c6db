package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) consoleCmd() *cobra.Command {
	keys := detachKeys("")
	var noReplay, noStdin bool
	cmd := &cobra.Command{
		Use:   "console NAME",
		Short: "Attach to an instance's own terminal or output",
		Long: `It begins with what was shown before, as far as that is kept. The instance goes on when you leave.

The detach keys work where standard input is a terminal; the first of them, pressed twice, is sent to the guest. Without a terminal in the guest, an interrupt leaves too.`,
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames(api.PhaseRunning, api.PhasePaused)),
	}
	fs := cmd.Flags()
	fs.BoolVar(&noReplay, "no-replay", false, "begin with what comes")
	fs.BoolVar(&noStdin, "no-stdin", false, "only watch")
	keys.flag(fs)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		in, err := c.Instance(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		tty := in.Spec.TTY || in.Status.System
		stdin := (in.Spec.Stdin || tty) && !noStdin
		return a.watch(cmd.Context(), in, attachment{
			tty: tty, stdin: stdin, keys: keys,
			open: func(ctx context.Context) (*client.Session, error) {
				return c.Console(ctx, in.Name, api.ConsoleRequest{Stdin: stdin, Replay: !noReplay})
			},
		})
	}
	return cmd
}

// watch attaches to a guest that somebody else started: its end is not our
// failure, and our interrupt is not its own.
func (a *app) watch(ctx context.Context, in *api.Instance, o attachment) error {
	_, isTerminal := a.terminal()
	if !o.tty || !o.stdin || !isTerminal {
		return a.watchPlain(ctx, o)
	}
	a.note("attached to %s; %s leaves", in.Name, o.keys.describe())
	err := a.attach(ctx, o)
	var status statusError
	var left leftError
	switch {
	case errors.As(err, &left):
		a.note("left %s", in.Name)
		return left.status()
	case errors.Is(err, client.ErrDetached):
		a.note("left %s", in.Name)
		return nil
	case errors.As(err, &status):
		a.note("%s ended with status %d", in.Name, int(status))
		return nil
	}
	return err
}

// watchPlain copies until the guest ends or the user interrupts.
func (a *app) watchPlain(ctx context.Context, o attachment) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := o.open(ctx)
	if err != nil {
		return err
	}
	streams := client.Streams{Stdout: a.out.W, Stderr: a.err.W}
	if o.stdin {
		streams.Stdin = a.in
		if _, isTerminal := a.terminal(); isTerminal {
			streams.Stdin = o.keys.reader(a.in)
		}
	}
	_, err = s.Run(ctx, streams)
	if ctx.Err() != nil || errors.Is(err, client.ErrDetached) {
		return nil
	}
	return err
}

// describe prints the keys as a user would write them.
func (k detachKeys) describe() string {
	text := ""
	for i := range len(k) {
		if i > 0 {
			text += " "
		}
		if k[i] < 0x20 {
			text += "ctrl-" + string(rune(k[i]|0x60))
		} else {
			text += string(rune(k[i]))
		}
	}
	if text == "" {
		return "nothing"
	}
	return text
}
