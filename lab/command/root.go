package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/lab"
	"github.com/cleave-project/cleave/lab/appliance"
	"github.com/cleave-project/cleave/lab/control"
)

// app is one run of the command line.
type app struct {
	name          string // of the lab
	in            io.Reader
	out, messages io.Writer
}

// status is an exit status that isn't an error of ours.
type status int

func (s status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// Main runs a command line and returns the exit status: 0 done, 1 failed, 2
// usage, and the command's own for exec.
func Main(args []string, in io.Reader, out, messages io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: in, out: out, messages: messages}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(messages)
	usage := true
	root.PersistentPreRun = func(*cobra.Command, []string) { usage = false }
	err := root.ExecuteContext(ctx)
	var s status
	switch {
	case err == nil:
		return 0
	case errors.As(err, &s):
		return int(s)
	case usage:
		fmt.Fprintf(messages, "lab: %v\n", err)
		return 2
	}
	fmt.Fprintf(messages, "lab: %v\n", err)
	return 1
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A virtual datacenter: hosts with a stock kernel and KVM, on a wire that can be cut",
		Long: `The hosts are virtual machines of QEMU, with Debian's kernel, Cleave's own user space, and KVM inside, emulated where the hardware's can't be used. No privileges are needed. They are named h1, h2 and so on, have the addresses 10.87.0.1, 10.87.0.2 and so on, and know each other by name; what they keep is in /var.

A lab lives in a background process until it is taken down.`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.PersistentFlags().StringVar(&a.name, "lab", "lab", "which lab, where there are several")
	root.AddCommand(a.upCmd(), a.serveCmd(), a.listCmd(), a.downCmd(), a.execCmd(), a.cpCmd(), a.logsCmd(), a.applianceCmd())
	root.AddCommand(a.linkCmds()...)
	root.AddCommand(a.powerCmds()...)
	return root
}

func (a *app) client() (*control.Client, error) {
	dir, err := control.Dir(a.name)
	if err != nil {
		return nil, err
	}
	return &control.Client{Dir: dir, Tell: func(what string) { fmt.Fprintln(a.messages, what) }}, nil
}

// build makes the appliance of the programs in bin.
func (a *app) build(ctx context.Context, bin string, o appliance.Options) (*appliance.Image, error) {
	cache, images := lab.Cache()
	o.Cache, o.Bin = cache, bin
	if o.Dir == "" {
		o.Dir = images
	}
	o.Tell = func(what string) { fmt.Fprintln(a.messages, what) }
	return appliance.Build(ctx, o)
}

func (a *app) upCmd() *cobra.Command {
	var (
		n            int
		memory, size string
		bin          string
		spec         = lab.DefaultSpec("")
	)
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Boot hosts: those that are missing, or off",
		Args:  cobra.NoArgs,
	}
	f := cmd.Flags()
	f.IntVar(&n, "hosts", 1, "how many hosts")
	f.IntVar(&spec.CPUs, "cpus", spec.CPUs, "processors of each")
	f.StringVar(&memory, "memory", api.Bytes(spec.Memory).String(), "memory of each")
	f.StringVar(&size, "disk", api.Bytes(spec.Disk).String(), "size of each one's disk, which takes room as it is written to")
	f.BoolVar(&spec.KVM, "kvm", true, "give them KVM")
	f.BoolVar(&spec.Daemon, "daemon", true, "have them run cleaved")
	f.StringVar(&bin, "bin", "bin", "directory with Cleave's programs, from `make build`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, s := range []struct {
			text string
			to   *int64
		}{{memory, &spec.Memory}, {size, &spec.Disk}} {
			b, err := api.ParseBytes(s.text)
			if err != nil {
				return err
			}
			*s.to = int64(b)
		}
		if err := lab.Check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		img, err := a.build(cmd.Context(), bin, appliance.Options{})
		if err != nil {
			return err
		}
		defer img.Close()
		if err := a.start(cmd.Context(), c, bin); err != nil {
			return err
		}
		return a.boot(cmd.Context(), c, n, spec)
	}
	return cmd
}

// start starts the lab's process.
func (a *app) start(ctx context.Context, c *control.Client, bin string) error {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return err
	}
	own, err := os.Executable()
	if err != nil {
		return err
	}
	return c.Start(ctx, own, "serve", "--lab", a.name, "--bin", bin)
}

// boot makes the hosts that are missing, and boots those that are off.
func (a *app) boot(ctx context.Context, c *control.Client, n int, spec lab.Spec) error {
	s, err := c.Status(ctx)
	if err != nil {
		return err
	}
	there, off := map[string]bool{}, []string(nil)
	for _, h := range s.Hosts {
		there[h.Name] = true
		if h.State == lab.Off {
			off = append(off, h.Name)
		}
	}
	var specs []lab.Spec
	for i := range n {
		h := spec
		if h.Name = fmt.Sprintf("h%d", i+1); !there[h.Name] {
			specs = append(specs, h)
		}
	}
	if len(off) > 0 {
		if err := c.Boot(ctx, off...); err != nil {
			return err
		}
	}
	if len(specs) == 0 {
		return nil
	}
	return c.Add(ctx, specs...)
}

// serveCmd is the lab's process.
func (a *app) serveCmd() *cobra.Command {
	var bin string
	cmd := &cobra.Command{Use: "serve", Hidden: true, Args: cobra.NoArgs}
	cmd.Flags().StringVar(&bin, "bin", "bin", "")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		slog.SetDefault(slog.New(slog.NewTextHandler(a.messages, nil)))
		c, err := a.client()
		if err != nil {
			return err
		}
		img, err := a.build(cmd.Context(), bin, appliance.Options{})
		if err != nil {
			return err
		}
		defer img.Close()
		ready := os.NewFile(3, "ready")
		defer ready.Close()
		return control.Serve(cmd.Context(), c.Dir, img, func() {
			fmt.Fprintln(ready, "ready")
			ready.Close()
		})
	}
	return cmd
}

func (a *app) downCmd() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "End the lab, and remove all that it kept", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.Down(cmd.Context())
		},
	}
}

func (a *app) applianceCmd() *cobra.Command {
	var (
		o   appliance.Options
		bin string
	)
	cmd := &cobra.Command{
		Use:   "appliance",
		Short: "Build the system of the hosts, and print the directory it is in",
		Args:  cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&bin, "bin", "bin", "directory with Cleave's programs, from `make build`")
	f.StringVar(&o.Dir, "dir", "", "directory that gets the image (default: the cache)")
	f.StringVar(&o.Kernel, "kernel", "", "package of the kernel (default: Debian's for virtual machines)")
	f.BoolVar(&o.Fresh, "fresh", false, "ask for newer packages")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		img, err := a.build(cmd.Context(), bin, o)
		if err != nil {
			return err
		}
		defer img.Close()
		fmt.Fprintln(a.out, strings.TrimSuffix(img.Dir, "/"))
		return nil
	}
	return cmd
}
