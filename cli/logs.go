package cli

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/cli/settings"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) logsCmd() *cobra.Command {
	var (
		o     client.LogOptions
		since string
		times bool
	)
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Print what an instance wrote",
		Long:  `What it wrote to standard error comes on standard error.`,
		Example: `  cleave logs -f web
  cleave logs --since 10m --timestamps web`,
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames()),
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.Follow, "follow", "f", false, "go on as it writes, until it ends")
	fs.StringVar(&since, "since", "", "begin then: 10m (ago), or 2026-01-02T15:04:05Z")
	named(fs, "since", "TIME")
	fs.IntVarP(&o.Tail, "tail", "n", -1, "only the last N lines of the past")
	fs.BoolVar(&times, "timestamps", false, "begin every line with its time")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if o.Since, err = a.since(since); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		out := map[string]io.Writer{"stdout": a.out.W, "stderr": a.err.W}
		for _, stream := range []string{"stdout", "stderr"} {
			if times {
				out[stream] = &stamper{w: out[stream]}
			}
		}
		for entry, err := range c.Logs(ctx, args[0], o) {
			if err != nil {
				if ctx.Err() != nil {
					return nil // how a follower leaves
				}
				return err
			}
			w := out[entry.Stream]
			if w == nil {
				w = out["stdout"]
			}
			if s, ok := w.(*stamper); ok {
				s.at = entry.Time
			}
			if _, err := w.Write(entry.Data); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// since reads a moment: an age or a time.
func (a *app) since(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	d, err := settings.ParseDuration(text)
	if err != nil {
		return time.Time{}, usageError{errors.New("--since " + text + ": write a time span like 10m or 2d, or a time like 2026-01-02T15:04:05Z")}
	}
	return a.now().Add(-d), nil
}

// stamper begins every line with the time of the piece it came in.
type stamper struct {
	w    io.Writer
	at   time.Time
	open bool // a line has begun
	buf  []byte
}

func (s *stamper) Write(p []byte) (int, error) {
	s.buf = s.buf[:0]
	for _, b := range p {
		if !s.open {
			s.buf = s.at.UTC().AppendFormat(s.buf, "2006-01-02T15:04:05.000000Z07:00")
			s.buf = append(s.buf, ' ')
		}
		s.buf = append(s.buf, b)
		s.open = b != '\n'
	}
	if _, err := s.w.Write(s.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}
