package cli

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// execution is what exec and shell have in common.
type execution struct {
	interactive, tty bool
	req              api.ExecRequest
	env              []string
}

func (e *execution) flags(fs *pflag.FlagSet) {
	fs.SetInterspersed(false)
	fs.StringVarP(&e.req.User, "user", "u", "", "user (and group) in the guest")
	named(fs, "user", "USER[:GROUP]")
	fs.StringArrayVarP(&e.env, "env", "e", nil, "environment variable; NAME alone takes it from here")
	named(fs, "env", "NAME=VALUE")
	fs.StringVarP(&e.req.WorkDir, "workdir", "w", "", "working directory in the guest")
	named(fs, "workdir", "DIR")
}

func (a *app) execCmd() *cobra.Command {
	var e execution
	cmd := &cobra.Command{
		Use:   "exec NAME -- COMMAND...",
		Short: "Run a command in a running instance",
		Long:  `The exit status is the command's own. Bytes pass untouched in all directions; signals that cleave gets are passed on to the command. Cleave leaves a command that has not ended 10 seconds after SIGTERM or SIGHUP, at the second of these, or at the third interrupt; its exit status is then 128 plus the signal's number. Without -i the command's standard input is /dev/null.`,
		Example: `  cleave exec web -- cat /etc/hosts
  echo hi | cleave exec -i web -- cat
  cleave exec -it web -- sh`,
		ValidArgsFunction: a.complete(1, instanceNames(api.PhaseRunning)),
	}
	fs := cmd.Flags()
	fs.BoolVarP(&e.interactive, "interactive", "i", false, "send standard input to it")
	fs.BoolVarP(&e.tty, "tty", "t", false, "give it a terminal")
	e.flags(fs)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name, command, err := subjectAndCommand(cmd, args)
		switch {
		case err != nil:
			return err
		case name == "":
			return usagef("NAME is missing: write it before the --")
		case len(command) == 0:
			return usagef("COMMAND is missing; 'cleave shell %s' opens a shell", name)
		}
		e.req.Command = command
		return a.exec(cmd.Context(), name, e)
	}
	return cmd
}

func (a *app) exec(ctx context.Context, name string, e execution) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	e.req.TTY, e.req.Stdin = e.tty, e.interactive
	for _, v := range e.env {
		if n, _, ok := strings.Cut(v, "="); !ok {
			value, set := os.LookupEnv(n)
			if !set {
				return usagef("--env %s: there is no such variable here; write NAME=VALUE", n)
			}
			v = n + "=" + value
		}
		e.req.Env = append(e.req.Env, v)
	}
	if e.tty {
		e.req.Cols, e.req.Rows, _ = a.size()
		if t := os.Getenv("TERM"); t != "" {
			e.req.Env = append([]string{"TERM=" + t}, e.req.Env...)
		}
	}
	err = a.attach(ctx, attachment{
		tty: e.tty, stdin: e.interactive,
		open: func(ctx context.Context) (*client.Session, error) { return c.Exec(ctx, name, e.req) },
	})
	if left := (leftError{}); errors.As(err, &left) {
		return a.left(name, left)
	}
	if status, ok := api.CommandStatus(err); ok {
		a.complain("", err)
		return statusError(status)
	}
	return err
}

// loginShell finds the user's shell in the guest and becomes it: what passwd
// says, unless that one forbids logging in, else bash, else sh.
const loginShell = `u=$(id -u) s= h=
while IFS=: read -r n _ i _ _ d p; do [ "$i" = "$u" ] && { s=$p h=$d; export USER="$n" LOGNAME="$n"; break; }; done </etc/passwd 2>/dev/null
case $s in */nologin|*/false|'') s= ;; esac
[ -x "$s" ] || s=$(command -v bash || command -v sh)
[ -d "$h" ] && export HOME="$h"
[ -n "$CLEAVE_CD" ] || { [ -d "$h" ] && cd "$h"; }
unset CLEAVE_CD; export SHELL="$s"
exec "$s" -l`

func (a *app) shellCmd() *cobra.Command {
	e := execution{interactive: true}
	cmd := &cobra.Command{
		Use:   "shell NAME",
		Short: "Open a shell in a running instance",
		Long:  `The shell is the one that the guest's passwd names for the user, else bash, else sh, as a login shell. Where standard input is no terminal, the shell reads its commands from there.`,
		Example: `  cleave shell web
  cleave shell -u www-data web
  echo 'uname -a' | cleave shell web`,
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames(api.PhaseRunning)),
	}
	e.flags(cmd.Flags())
	cmd.Flags().SetInterspersed(true)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, e.tty = a.terminal()
		e.req.Command = []string{"/bin/sh", "-c", loginShell}
		if e.req.WorkDir != "" {
			e.env = append(e.env, "CLEAVE_CD=no")
		}
		return a.exec(cmd.Context(), args[0], e)
	}
	return cmd
}
