package cli

import (
	"context"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/client"
	"github.com/spf13/cobra"
)

func (a *app) kernelCmd() *cobra.Command {
	list := listVerb(a, "List kernels", a.kernelListing(), func(ctx context.Context, c *client.Client) iter.Seq2[api.Kernel, error] { return c.Kernels(ctx) })
	show := showVerb(a, "Show one kernel", "NAME", kernelNames, func(ctx context.Context, c *client.Client, n string) (*api.Kernel, error) { return c.Kernel(ctx, n) }, a.describeKernel)
	del := deleteVerb(a, "Delete kernels that no instance needs", kernelNames, func(ctx context.Context, c *client.Client, n string) error { return c.DeleteKernel(ctx, n) })
	return noun("kernel", "Kernels: what boots images in machines", list, show, a.kernelFetchCmd(), a.kernelAddCmd(), a.kernelDefaultCmd(), del)
}

func (a *app) kernelListing() output.Listing[api.Kernel] {
	return output.Listing[api.Kernel]{
		Name: func(k api.Kernel) string { return k.Name },
		Columns: []output.Column[api.Kernel]{
			{Head: "NAME", Flex: true, Cell: func(k api.Kernel) string { return k.Name }},
			{Head: "KIND", Cell: func(k api.Kernel) string { return string(k.Kind) }},
			{Head: "ARCH", Cell: func(k api.Kernel) string { return k.Arch }},
			{Head: "DEFAULT", Cell: func(k api.Kernel) string { return map[bool]string{true: "yes"}[k.Default] }, Raw: func(k api.Kernel) string { return fmt.Sprint(k.Default) }},
			amount("SIZE", func(k api.Kernel) api.Bytes { return k.Size }),
			{Head: "USED", Right: true, Cell: func(k api.Kernel) string { return fmt.Sprint(len(k.UsedBy)) }},
			{Head: "AGE", Right: true, Cell: func(k api.Kernel) string { return a.age(k.Created) }, Raw: func(k api.Kernel) string { return stamp(k.Created) }},
			{Head: "VERSION", Extra: true, Cell: func(k api.Kernel) string { return k.Version }},
			{Head: "SOURCE", Extra: true, Flex: true, Cell: func(k api.Kernel) string { return k.Source }},
		},
	}
}

func (a *app) describeKernel(s *output.Sections, k *api.Kernel) {
	s.Pair("Name", k.Name)
	s.Pair("Kind", string(k.Kind))
	s.Pair("Architecture", k.Arch)
	s.Pair("Version", k.Version)
	s.Pair("Default", yes(k.Default))
	s.Pair("Size", k.Size.String())
	s.Pair("Source", k.Source)
	s.Pair("On this host since", a.ago(&k.Created))
	s.Each("Used by", k.UsedBy)
}

func kernelNames(ctx context.Context, c *client.Client, _ string) ([]string, error) {
	return collect(c.Kernels(ctx), func(k api.Kernel) []string { return []string{k.Name} })
}

// kernelFlags are those that fetch and add have in common.
func kernelFlags(cmd *cobra.Command, kind *api.Kind, def *bool, kindDoc string) {
	fs := cmd.Flags()
	fs.StringVar((*string)(kind), "kind", "", kindDoc)
	named(fs, "kind", "vm|pvm")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions([]string{"vm", "pvm"}, cobra.ShellCompDirectiveNoFileComp))
	fs.BoolVar(def, "default", false, "make it the default one of its kind and architecture; the first one is anyway")
}

func (a *app) kernelFetchCmd() *cobra.Command {
	var fetch api.KernelFetch
	distributions := []string{"debian"}
	cmd := &cobra.Command{
		Use:   "fetch DISTRIBUTION",
		Short: "Fetch a distribution's kernel package",
		Long:  "DISTRIBUTION is debian: its cloud kernel for virtual machines, its User Mode Linux for paravirtual ones. The daemon's host gets the package by its own package tools, which verify it, and doesn't install it. Nothing is fetched when the newest is there already.",
		Example: `  cleave kernel fetch debian
  cleave kernel fetch debian --kind pvm
  cleave kernel fetch debian --arch arm64`,
		Args:              args(1, 1, "DISTRIBUTION"),
		ValidArgsFunction: cobra.FixedCompletions(distributions, cobra.ShellCompDirectiveNoFileComp),
	}
	kernelFlags(cmd, &fetch.Kind, &fetch.Default, "for which kind of instance (default vm)")
	cmd.Flags().StringVar(&fetch.Arch, "arch", "", "for guests of which architecture (default: the host's)")
	named(cmd.Flags(), "arch", "amd64|arm64|riscv64")
	_ = cmd.RegisterFlagCompletionFunc("arch", cobra.FixedCompletions([]string{"amd64", "arm64", "riscv64"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		fetch.Distribution = args[0]
		if err := fetch.Validate(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		op, err := a.one(cmd.Context(), func(ctx context.Context) (*api.Operation, error) { return c.FetchKernel(ctx, fetch) })
		return a.printResult(op, err)
	}
	return cmd
}

func (a *app) kernelAddCmd() *cobra.Command {
	var add api.KernelAdd
	cmd := &cobra.Command{
		Use:   "add FILE|host",
		Short: "Add a kernel of one's own",
		Long: `FILE is a .deb package with a kernel, or a kernel itself: a bzImage, an Image of arm64 or riscv64, or linux.uml. It is sent to the daemon.

With --modules, FILE and the modules' directory (or their package) are files of the daemon's host, as are those of the kernel that the host itself runs, which the word host means. That is for root on that host alone.`,
		Example: `  cleave kernel add linux-image-6.1.0-32-cloud-amd64_6.1.129-1_amd64.deb
  cleave kernel add ./bzImage --modules /tmp/modules/lib/modules/6.12.1
  cleave kernel add host --default`,
		Args: args(1, 1, "FILE|host"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			// Names of files are offered where nothing else is.
			if word := api.KernelOfHost; len(args) == 0 && prefix != "" && strings.HasPrefix(word, prefix) {
				return []cobra.Completion{word}, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	kernelFlags(cmd, &add.Kind, &add.Default, "refuse it unless it is for this kind of instance")
	fs := cmd.Flags()
	fs.StringVar(&add.Name, "name", "", "its name (default: its release)")
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	fs.StringVar(&add.Modules, "modules", "", "directory of its modules on the daemon's host, with modules.dep or as in a package, or a .deb")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		k, err := a.addKernel(cmd.Context(), c, add, args[0])
		if err == nil {
			_, err = fmt.Fprintln(a.out.W, k.Name)
		}
		return err
	}
	return cmd
}

// addKernel sends a file, or has the daemon look at its host's.
func (a *app) addKernel(ctx context.Context, c *client.Client, add api.KernelAdd, file string) (*api.Kernel, error) {
	add.Image = file
	if file != api.KernelOfHost {
		for _, p := range []*string{&add.Image, &add.Modules} {
			abs, err := filepath.Abs(*p)
			if err != nil {
				return nil, err
			}
			if *p != "" {
				*p = abs
			}
		}
	}
	if err := add.Validate(); err != nil {
		return nil, err
	}
	if file == api.KernelOfHost || add.Modules != "" {
		return c.AddKernel(ctx, add)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var size int64
	if fi, err := f.Stat(); err == nil {
		size = fi.Size()
	}
	rep := progress.New(a.err, noticeable)
	defer rep.Close()
	return c.ImportKernel(ctx, add, rep.Reader(f, "import", progress.State{Title: "send " + filepath.Base(file), Total: size}))
}

func (a *app) kernelDefaultCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "default NAME",
		Short: "Make a kernel the default one of its kind and architecture",
		Long:  "Instances that name no kernel boot with it from their next start.",
		Args:  args(1, 1, "NAME"), ValidArgsFunction: a.complete(1, kernelNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			_, err = c.SetDefaultKernel(cmd.Context(), args[0])
			return err
		},
	}
}
