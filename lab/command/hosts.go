package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/transfer"
	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/control"
	"github.com/cleave-project/cleave/lab/wire"
)

func (a *app) listCmd() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show the hosts, and links that are not whole", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "HOST\tSTATE\tADDRESS\tCPUS\tMEMORY\tKVM")
			for _, h := range s.Hosts {
				kvm := "no"
				if h.KVM {
					kvm = "yes"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%v\t%s\n", h.Name, h.State, h.Address, h.CPUs, api.Bytes(h.Memory), kvm)
			}
			for _, l := range s.Links {
				if l.Rule != (wire.Rule{}) {
					fmt.Fprintf(w, "%s -> %s\t%s\n", l.From, l.To, describe(l.Rule))
				}
			}
			return w.Flush()
		},
	}
}

func describe(r wire.Rule) string {
	var words []string
	if r.Cut {
		words = append(words, "cut")
	}
	if r.Delay > 0 {
		words = append(words, "delayed by "+r.Delay.String())
	}
	if r.Drop > 0 {
		words = append(words, fmt.Sprintf("drops %v %%", r.Drop*100))
	}
	return strings.Join(words, ", ")
}

// linkCmds are the commands that change the wire.
func (a *app) linkCmds() []*cobra.Command {
	const between = " Between HOST and OTHER, or all others; in both directions, or with --one-way only from HOST on."
	link := func(use, short string, last bool, rule func(arg string) (wire.Rule, error)) *cobra.Command {
		var oneWay bool
		values := 0
		if last {
			values = 1
		}
		cmd := &cobra.Command{Use: use, Short: short, Long: short + "." + between, Args: cobra.RangeArgs(1+values, 2+values)}
		cmd.Flags().BoolVar(&oneWay, "one-way", false, "only what HOST sends")
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			value := ""
			if last {
				args, value = args[:len(args)-1], args[len(args)-1]
			}
			r, err := rule(value)
			if err != nil {
				return err
			}
			change := lab.Change{From: args[0], OneWay: oneWay, Rule: r}
			if len(args) > 1 {
				change.To = args[1]
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.Link(cmd.Context(), change)
		}
		return cmd
	}
	return []*cobra.Command{
		link("cut HOST [OTHER]", "Cut links", false, func(string) (wire.Rule, error) { return wire.Rule{Cut: true}, nil }),
		link("heal HOST [OTHER]", "Make links whole again, without delay or loss", false, func(string) (wire.Rule, error) { return wire.Rule{}, nil }),
		link("delay HOST [OTHER] TIME", "Delay frames, by 20ms for example", true, func(s string) (wire.Rule, error) {
			d, err := time.ParseDuration(s)
			return wire.Rule{Delay: d}, err
		}),
		link("drop HOST [OTHER] PERCENT", "Lose frames by chance", true, func(s string) (wire.Rule, error) {
			p, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
			return wire.Rule{Drop: p / 100}, err
		}),
	}
}

// powerCmds are the commands that end hosts and start them.
func (a *app) powerCmds() []*cobra.Command {
	on := func(use, short string, do func(*control.Client, *cobra.Command, []string) error) *cobra.Command {
		return &cobra.Command{
			Use: use + " HOST...", Short: short, Args: cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				return do(c, cmd, args)
			},
		}
	}
	var power bool
	kill := on("kill", "End hosts at once, as a crash does", func(c *control.Client, cmd *cobra.Command, hosts []string) error {
		if !power {
			return c.Kill(cmd.Context(), hosts...)
		}
		lost, err := c.LosePower(cmd.Context(), hosts...)
		if err == nil {
			fmt.Fprintf(a.messages, "%v of what was not flushed are lost\n", api.Bytes(lost))
		}
		return err
	})
	kill.Flags().BoolVar(&power, "power", false, "as a loss of power does: what was not flushed to their disks is lost")
	return []*cobra.Command{
		kill,
		on("power-off", "Shut hosts down in good order", func(c *control.Client, cmd *cobra.Command, hosts []string) error {
			return c.PowerOff(cmd.Context(), hosts...)
		}),
		on("power-on", "Boot hosts that are off", func(c *control.Client, cmd *cobra.Command, hosts []string) error {
			return c.Boot(cmd.Context(), hosts...)
		}),
		on("pause", "Stop the time of hosts", func(c *control.Client, cmd *cobra.Command, hosts []string) error {
			return c.Pause(cmd.Context(), hosts...)
		}),
		on("resume", "Let the time of hosts go on", func(c *control.Client, cmd *cobra.Command, hosts []string) error {
			return c.Resume(cmd.Context(), hosts...)
		}),
	}
}

func (a *app) logsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "logs HOST", Short: "Show what a host's console said", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			for _, h := range s.Hosts {
				if h.Name != args[0] {
					continue
				}
				f, err := os.Open(h.Console)
				if err != nil {
					return err
				}
				defer f.Close()
				_, err = io.Copy(a.out, f)
				return err
			}
			return fmt.Errorf("the lab has no host %q", args[0])
		},
	}
}

func (a *app) execCmd() *cobra.Command {
	var interactive, tty bool
	cmd := &cobra.Command{
		Use:   "exec HOST -- COMMAND...",
		Short: "Run a command in a host; a shell if none is named",
		Long:  "Run a command in a host; a shell with a terminal if none is named. The exit status is the command's own. Without -i its standard input is /dev/null.",
		Args:  cobra.MinimumNArgs(1),
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "send standard input to it")
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "give it a terminal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		agent, err := c.Agent(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		defer agent.Close()
		q := lab.Command{Stdout: a.out, Stderr: a.messages}
		if q.Command = args[1:]; len(q.Command) > 0 && q.Command[0] == "--" {
			q.Command = q.Command[1:]
		}
		if len(q.Command) == 0 {
			q.Command, interactive, tty = []string{"/bin/sh", "-l"}, true, true
		}
		if interactive {
			q.Stdin = a.in
		}
		if fd := int(os.Stdin.Fd()); tty && term.IsTerminal(fd) {
			cols, rows, _ := term.GetSize(fd)
			q.TTY, q.Cols, q.Rows = true, uint16(cols), uint16(rows)
			q.Env = []string{"TERM=" + os.Getenv("TERM")}
			was, err := term.MakeRaw(fd)
			if err != nil {
				return err
			}
			defer func() { _ = term.Restore(fd, was) }()
		}
		code, err := lab.Exec(cmd.Context(), agent, q)
		if s, ok := api.CommandStatus(err); ok {
			fmt.Fprintf(a.messages, "lab: %v\n", err)
			code, err = s, nil
		}
		if err == nil && code != 0 {
			err = status(code)
		}
		return err
	}
	return cmd
}

func (a *app) cpCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "cp SOURCE TARGET",
		Short:   "Copy files between here and a host: HOST:PATH is one side",
		Example: "  lab cp bin/cleaved h1:/root/\n  lab cp h1:/var/log ./log",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			from, source, fromHost := strings.Cut(args[0], ":")
			to, target, toHost := strings.Cut(args[1], ":")
			switch {
			case fromHost == toHost:
				return errors.New("one side is HOST:PATH, and the other is here")
			case toHost:
				return put(cmd, c, args[0], to, target)
			}
			return get(cmd, c, from, source, args[1])
		},
	}
}

// put copies a file of this machine into a host. A target that ends in a slash
// is a directory; else it is the copy's name.
func put(cmd *cobra.Command, c *control.Client, source, host, target string) error {
	agent, err := c.Agent(cmd.Context(), host)
	if err != nil {
		return err
	}
	defer agent.Close()
	dir, name := path.Dir(target), path.Base(target)
	if strings.HasSuffix(target, "/") {
		dir, name = path.Clean(target), filepath.Base(filepath.Clean(source))
	}
	r, w := io.Pipe()
	go func() {
		_, err := transfer.Pack(w, source, name, false)
		w.CloseWithError(err)
	}()
	defer r.Close() // ends the writer, whatever came of it
	return agent.Put(cmd.Context(), dir, r)
}

// get copies a file of a host to this machine.
func get(cmd *cobra.Command, c *control.Client, host, source, target string) error {
	agent, err := c.Agent(cmd.Context(), host)
	if err != nil {
		return err
	}
	defer agent.Close()
	source = path.Clean(source)
	stream, err := agent.Get(cmd.Context(), source)
	if err != nil {
		return err
	}
	defer stream.Close()
	place := transfer.Target{Dir: filepath.Dir(target), Name: filepath.Base(target)}
	if st, err := os.Stat(target); err == nil && st.IsDir() {
		place = transfer.Target{Dir: target, Name: path.Base(source)}
	}
	_, err = transfer.Unpack(stream, path.Base(source), place)
	return err
}
