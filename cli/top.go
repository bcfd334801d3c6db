package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// topInterval is how often top renews itself unless told otherwise.
const topInterval = 2 * time.Second

func (a *app) topCmd() *cobra.Command {
	interval := timeSpan{Duration: topInterval}
	cmd := &cobra.Command{
		Use:   "top [NAME...]",
		Short: "Watch what running instances use, on the whole screen",
		Long: `Keys: c, m, p, d, n and a sort by CPU, memory, processes, disk, network and name; r reverses; space renews at once; q leaves.

STALL is the resource that a guest waited for most in the last ten seconds, and how much of them.`,
		ValidArgsFunction: a.complete(-1, instanceNames(api.PhaseRunning)),
	}
	cmd.Flags().Var(&interval, "interval", "time between renewals (default 2s)")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		return a.top(cmd.Context(), names, max(interval.Duration, 100*time.Millisecond))
	}
	return cmd
}

// topScreen is what top shows.
type topScreen struct {
	host          *api.HostInfo
	names         []string
	before, now   []api.Stats
	key           sortKey
	reverse       bool
	err           error
	width, height int
	clock         time.Time
	color         bool
}

// top takes the screen until the user leaves.
func (a *app) top(ctx context.Context, names []string, interval time.Duration) error {
	tty, ok := a.terminal()
	if !ok || a.out.Width == 0 {
		return api.Errorf(api.CodeInvalid, "top needs a terminal").WithHint("'cleave stats' prints the figures once")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	host, err := c.Host(ctx)
	if err != nil {
		return err
	}
	old, err := term.MakeRaw(int(tty.Fd()))
	if err != nil {
		return err
	}
	defer term.Restore(int(tty.Fd()), old)
	// The alternate screen, without a cursor, and back.
	fmt.Fprint(a.out.W, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(a.out.W, "\x1b[?25h\x1b[?1049l")
	s := &topScreen{host: host, names: names, key: sortKeys[0], color: a.out.Color}
	return a.topLoop(ctx, s, tty, interval)
}

func (a *app) topLoop(ctx context.Context, s *topScreen, keyboard io.Reader, interval time.Duration) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	keys := make(chan byte)
	go readKeys(ctx, keyboard, keys)
	type sample struct {
		stats []api.Stats
		err   error
	}
	samples, asked := make(chan sample, 1), false
	ask := func() {
		if asked {
			return
		}
		asked = true
		go func() {
			stats, err := a.sample(ctx, s.names)
			samples <- sample{stats, err}
		}()
	}
	ask()
	// The second sample comes soon, so that there are rates to show.
	timer := time.NewTimer(min(interval, 500*time.Millisecond))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case key := <-keys:
			if !s.press(key, ask) {
				return nil
			}
		case <-resized:
		case <-timer.C:
			timer.Reset(interval)
			ask()
			continue
		case got := <-samples:
			asked = false
			if s.err = got.err; got.err == nil {
				s.before, s.now = s.now, got.stats
			}
		}
		cols, rows, _ := a.size()
		s.width, s.height, s.clock = max(int(cols), 40), max(int(rows), 5), a.now()
		if _, err := io.WriteString(a.out.W, s.frame()); err != nil {
			return err
		}
	}
}

// readKeys hands on what is pressed. It ends with the first read that
// returns after ctx did.
func readKeys(ctx context.Context, r io.Reader, keys chan<- byte) {
	var b [1]byte
	for {
		if _, err := r.Read(b[:]); err != nil {
			b[0] = 'q'
		}
		select {
		case keys <- b[0]:
		case <-ctx.Done():
			return
		}
	}
}

// press obeys a key and tells whether to go on.
func (s *topScreen) press(key byte, renew func()) bool {
	switch key {
	case 'q', 3, 4: // and ctrl-c, ctrl-d
		return false
	case 'r':
		s.reverse = !s.reverse
	case ' ':
		renew()
	}
	for _, k := range sortKeys {
		if k.key == key {
			s.key = k
		}
	}
	return true
}

// frame is the whole screen in one piece, every line cleared behind its
// text, so that nothing flickers.
func (s *topScreen) frame() string {
	lines := s.lines()
	if len(lines) > s.height {
		lines = lines[:s.height]
	}
	return "\x1b[H" + strings.Join(lines, "\x1b[K\r\n") + "\x1b[K\x1b[J"
}

func (s *topScreen) lines() []string {
	list := usages(s.before, s.now)
	sortUsages(list, s.key, s.reverse)
	cpu, memory := 0.0, api.Bytes(0)
	for _, u := range list {
		cpu += u.CPU
		memory += u.Memory
	}
	head := fmt.Sprintf("%s  %s  %d running  CPU %.0f%% of %d00%%  memory %s of %s", s.clock.Format("15:04:05"), s.host.Host, len(list),
		cpu, s.host.CPUs, brief(float64(memory)), brief(float64(s.host.Memory)))
	order := s.key.name
	if s.reverse {
		order += ", reversed"
	}
	keys := "by " + order + "   c)pu m)emory p)ids d)isk n)et n(a)me r)everse q)uit"
	if s.err != nil {
		keys = "no news: " + api.AsError(s.err).Message
	}
	var b strings.Builder
	p := output.Printer{W: &b, Width: s.width, Color: s.color}
	if err := output.List(&p, output.Table, usageFor(s.width), list); err != nil {
		return []string{err.Error()}
	}
	lines := []string{p.Paint(output.Shorten(output.Clean(head), s.width), output.Strong), p.Paint(output.Shorten(output.Clean(keys), s.width), output.Dim), ""}
	return append(lines, strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")...)
}
