package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) runCmd() *cobra.Command {
	var (
		cr                               creation
		remove, interactive, tty, detach bool
		keys                             detachKeys
	)
	cmd := &cobra.Command{
		Use:   "run IMAGE [-- COMMAND...]",
		Short: "Create an instance, start it, and be its terminal until it ends",
		Long: `The exit status is the command's own, 128 plus the signal's number when a signal ended it.

Without -t, signals that cleave gets are passed on to the guest; the third interrupt, the second SIGTERM or 10 seconds after the first leave it running. With -t, the terminal is the guest's, and the detach keys leave it running.`,
		Example: `  cleave run --rm base -- sh -c 'exit 7'
  cleave run --rm -it debian:bookworm -- bash
  tar c . | cleave run --rm -i base -- tar tv`,
		ValidArgsFunction: a.complete(1, imageNames),
	}
	fs := cmd.Flags()
	fs.SetInterspersed(false)
	fs.BoolVar(&remove, "rm", false, "delete the instance when it ends")
	fs.BoolVarP(&interactive, "interactive", "i", false, "send standard input to it")
	fs.BoolVarP(&tty, "tty", "t", false, "give it a terminal")
	fs.BoolVarP(&detach, "detach", "d", false, "only start it, and print its name")
	keys.flag(fs)
	a.creationFlags(cmd, &cr)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		image, command, err := subjectAndCommand(cmd, args)
		if err != nil {
			return err
		}
		if image == "" {
			return usagef("IMAGE is missing; base is one that needs no download")
		}
		in, err := cr.instance(image, command)
		if err != nil {
			return err
		}
		in.Spec.TTY, in.Spec.Stdin = in.Spec.TTY || tty, in.Spec.Stdin || interactive
		in.Spec.Ephemeral = in.Spec.Ephemeral || remove
		if err := a.create(cmd.Context(), in, detach, cr.named); err != nil {
			return err
		}
		if detach {
			fmt.Fprintln(a.out.W, in.Name)
			return nil
		}
		return a.runAttached(cmd.Context(), in, keys)
	}
	return cmd
}

// runAttached attaches to the created instance, starts it and follows it.
func (a *app) runAttached(ctx context.Context, in *api.Instance, keys detachKeys) error {
	err := a.attach(ctx, attachment{
		tty: in.Spec.TTY, stdin: in.Spec.Stdin, keys: keys,
		open: func(ctx context.Context) (*client.Session, error) {
			return a.daemon.Console(ctx, in.Name, api.ConsoleRequest{Stdin: in.Spec.Stdin, Start: true})
		},
	})
	var left leftError
	switch {
	case errors.As(err, &left):
		return a.left(in.Name, left)
	case errors.Is(err, client.ErrDetached):
		a.note("detached; 'cleave console %s' attaches again", in.Name)
		return nil
	}
	if in.Spec.Ephemeral {
		a.discard(ctx, in.Name)
	}
	return err
}

// discard waits until an ephemeral instance is gone, so that its name and its
// ports are free when we end. One that never began to run is deleted too.
func (a *app) discard(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	op, err := a.daemon.DeleteInstance(ctx, name, true)
	if err == nil {
		_, err = a.daemon.Wait(ctx, op, nil)
	}
	if err != nil && !api.IsCode(err, api.CodeNotFound) {
		a.complain(name, err)
	}
}

// subjectAndCommand splits SUBJECT [--] COMMAND..., for commands whose flags
// end at the first word: what follows the subject are our flags up to the
// first word that is none or the --, and then the guest's command, untouched.
func subjectAndCommand(cmd *cobra.Command, args []string) (subject string, command []string, err error) {
	if cmd.ArgsLenAtDash() == 0 || len(args) == 0 {
		return "", args, nil
	}
	subject, rest := args[0], args[1:]
	for len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' && rest[0] != "--" {
		if err := cmd.Flags().Parse(rest); err != nil {
			return "", nil, cmd.FlagErrorFunc()(cmd, err)
		}
		if help, _ := cmd.Flags().GetBool("help"); help {
			return "", nil, pflag.ErrHelp
		}
		if cmd.Flags().ArgsLenAtDash() == 0 {
			return subject, cmd.Flags().Args(), nil
		}
		rest = cmd.Flags().Args()
	}
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	return subject, rest, nil
}
