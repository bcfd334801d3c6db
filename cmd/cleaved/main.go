// Command cleaved is the daemon: it serves the API and keeps the guests of
// one host as their specs say. It can be restarted at any time.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/daemon"
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := command().ExecuteContext(context.Background()); err != nil {
		e := api.AsError(err)
		fmt.Fprintln(os.Stderr, "cleaved:", e.Message)
		if e.Hint != "" {
			fmt.Fprintln(os.Stderr, "hint:", e.Hint)
		}
		os.Exit(status(err))
	}
}

// errUsage marks errors of the command line.
type errUsage struct{ error }

func status(err error) int {
	if u := (errUsage{}); errors.As(err, &u) {
		return 2
	}
	return 1
}

func command() *cobra.Command {
	var file string
	var flags daemon.Config
	var detach bool
	c := &cobra.Command{
		Use:           "cleaved",
		Short:         "Run guests on this host and serve the API",
		Version:       version,
		Args:          func(_ *cobra.Command, args []string) error { return noArgs(args) },
		SilenceErrors: true, SilenceUsage: true,
	}
	f := c.Flags()
	f.StringVar(&file, "config", daemon.DefaultConfig, "configuration file")
	f.StringVar(&flags.Data, "data", daemon.DefaultData, "directory of the state, images and pools")
	f.StringVar(&flags.Run, "run", daemon.DefaultRun, "directory of sockets and mount points")
	f.StringVar(&flags.Group, "group", "cleave", "group that may use the API's socket, beside root")
	f.StringVar(&flags.Listen, "listen", "", "serve the API on host:port too, for bearers of a token")
	f.StringVar(&flags.TLSCert, "tls-cert", "", "PEM certificate for --listen")
	f.StringVar(&flags.TLSKey, "tls-key", "", "PEM key for --listen")
	f.StringVar(&flags.Libexec, "libexec", "", "directory of cleave-keeper, cleave-agent and busybox")
	f.StringVar(&flags.LogLevel, "log-level", "info", "debug, info, warn or error")
	f.Uint32Var(&flags.UIDBase, "uid-base", 0, "first host id for guests (default: by the data directory)")
	f.BoolVar(&detach, "detach", false, "run in the background, return when ready (without systemd)")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return errUsage{err} })
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := daemon.Load(file, c.Flags().Changed("config"))
		if err != nil {
			return err
		}
		for name, p := range map[string]struct{ to, from *string }{
			"data": {&cfg.Data, &flags.Data}, "run": {&cfg.Run, &flags.Run}, "group": {&cfg.Group, &flags.Group},
			"listen": {&cfg.Listen, &flags.Listen}, "tls-cert": {&cfg.TLSCert, &flags.TLSCert}, "tls-key": {&cfg.TLSKey, &flags.TLSKey},
			"libexec": {&cfg.Libexec, &flags.Libexec}, "log-level": {&cfg.LogLevel, &flags.LogLevel},
		} {
			if c.Flags().Changed(name) {
				*p.to = *p.from
			}
		}
		if c.Flags().Changed("uid-base") {
			cfg.UIDBase = flags.UIDBase
		}
		if detach {
			return daemon.Detach(cfg)
		}
		return daemon.Run(c.Context(), cfg, version)
	}
	return c
}

func noArgs(args []string) error {
	if len(args) > 0 {
		return errUsage{api.Errorf(api.CodeInvalid, "unexpected argument %q", args[0]).WithHint("see cleaved --help")}
	}
	return nil
}
