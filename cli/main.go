package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/spf13/cobra"
)

// Exit statuses; exec, shell and run end with the guest's own.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Main runs the command line args (without the program's name) and returns
// the exit status.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := newApp(stdin, stdout, stderr)
	defer a.close()
	root := newRoot(a, args)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return a.report(cmd, err)
}

// Root is the tree of commands, for the generator of the reference.
func Root() *cobra.Command { return newRoot(newApp(os.Stdin, io.Discard, io.Discard), nil) }

// statusError ends the command with a status and says nothing more.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a command line that can't be meant.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// report prints an error and turns it into the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	var status statusError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		a.complain("", usage.err)
		fmt.Fprintf(a.err.W, "see '%s --help'\n", cmd.CommandPath())
		return exitUsage
	case errors.Is(err, context.Canceled):
		a.complain("", errors.New("interrupted"))
		return exitFailed
	}
	a.complain("", err)
	return exitFailed
}

// complain prints one error, with the subject it is about when there were
// several.
func (a *app) complain(subject string, err error) {
	e := api.AsError(err)
	text := output.Clean(inUsersWords(e))
	if subject != "" && !strings.Contains(text, subject) {
		text = subject + ": " + text
	}
	fmt.Fprintf(a.err.W, "%s %s\n", a.err.Paint("cleave:", output.Bad), text)
	if e.Hint != "" {
		fmt.Fprintf(a.err.W, "hint: %s\n", output.Clean(e.Hint))
	}
}

// note says something that isn't an error.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.err.W, "note: %s\n", output.Clean(fmt.Sprintf(format, args...)))
}
