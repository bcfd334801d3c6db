package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
)

// creation is what launch, create and run have in common.
type creation struct {
	patch settings.Patch
	name  string
	named bool // by the user
}

func (a *app) creationFlags(cmd *cobra.Command, cr *creation) {
	fs := cmd.Flags()
	settings.InstanceFlags(fs, &cr.patch)
	fs.StringVar(&cr.name, "name", "", "name of the instance (default: one is made up)")
	a.settingFlags(cmd, settings.Instance)
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
}

// instance puts together what the user asked for.
func (cr *creation) instance(image string, command []string) (*api.Instance, error) {
	in := &api.Instance{}
	if err := cr.patch.Into(in); err != nil {
		return nil, err
	}
	cr.named = cr.name != ""
	in.Name, in.Spec.Image, in.Spec.Command = cr.name, image, command
	if in.Name == "" {
		in.Name = madeUpName()
	}
	return in, nil
}

// create makes the instance. A made-up name that is taken is made up again.
func (a *app) create(ctx context.Context, in *api.Instance, start, named bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var taken error
	for range 5 {
		op, err := a.one(ctx, func(ctx context.Context) (*api.Operation, error) { return c.CreateInstance(ctx, in, start) })
		if err == nil && op.Step != "" {
			a.note("%s", op.Step)
		}
		if named || !api.IsCode(err, api.CodeExists) {
			return err
		}
		taken = err
		in.Name = madeUpName()
	}
	return taken
}

// imageNameCommand splits IMAGE [NAME] [-- COMMAND...].
func (cr *creation) imageNameCommand(cmd *cobra.Command, args []string) (image string, command []string, err error) {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		args, command = args[:dash], slices.Clone(args[dash:])
	}
	switch {
	case len(args) == 0:
		return "", nil, usagef("IMAGE is missing; base is one that needs no download")
	case len(args) > 2:
		return "", nil, usagef("%q is too much: put -- before the command", args[2])
	case len(args) == 2 && cr.name != "" && cr.name != args[1]:
		return "", nil, usagef("two names are given, %q and %q", args[1], cr.name)
	case len(args) == 2:
		cr.name = args[1]
	}
	return args[0], command, nil
}

func (a *app) launchCmd() *cobra.Command {
	var cr creation
	var wait bool
	cmd := &cobra.Command{
		Use:   "launch IMAGE [NAME] [-- COMMAND...]",
		Short: "Create an instance and start it",
		Long: `The image is pulled when this host does not have it. COMMAND replaces the image's own command. The name is printed once the instance runs.

Interrupting the command cancels the launch; nothing is left of it.`,
		Example: `  cleave launch base web --publish 8080:80 -- httpd -f -p 80 -h /etc
  cleave launch debian:bookworm --cpus 2 --memory 1GiB -- sleep infinity
  cleave launch db-image db -v data:/var/lib/db --restart always --wait
  cleave launch base lab --kind vm --cpus 2 --memory 512MiB
  cleave launch debian-12.qcow2 server --ssh-key ~/.ssh/id_ed25519.pub`,
		ValidArgsFunction: a.complete(1, imageNames),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "return only when it is healthy (without a health check: running)")
	a.creationFlags(cmd, &cr)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in, err := cr.fromArgs(cmd, args)
		if err != nil {
			return err
		}
		if err := a.create(cmd.Context(), in, true, cr.named); err != nil {
			return err
		}
		if wait {
			if err := a.waitHealthy(cmd.Context(), in.Name); err != nil {
				return err
			}
		}
		fmt.Fprintln(a.out.W, in.Name)
		return nil
	}
	return cmd
}

func (cr *creation) fromArgs(cmd *cobra.Command, args []string) (*api.Instance, error) {
	image, command, err := cr.imageNameCommand(cmd, args)
	if err != nil {
		return nil, err
	}
	return cr.instance(image, command)
}

// emptyFromArgs is fromArgs for a machine with an empty disk.
func (cr *creation) emptyFromArgs(cmd *cobra.Command, args []string) (*api.Instance, error) {
	switch {
	case cmd.ArgsLenAtDash() >= 0:
		return nil, usagef("there is nothing yet to run a command in")
	case len(args) > 1:
		return nil, usagef("with --empty there is no IMAGE: %q is too much", args[1])
	case len(args) == 1 && cr.name != "" && cr.name != args[0]:
		return nil, usagef("two names are given, %q and %q", args[0], cr.name)
	case len(args) == 1:
		cr.name = args[0]
	}
	in, err := cr.instance("", nil)
	if err != nil {
		return nil, err
	}
	in.Spec.Kind = cmp.Or(in.Spec.Kind, api.KindVM)
	return in, nil
}

func (a *app) createCmd() *cobra.Command {
	var cr creation
	var empty bool
	cmd := &cobra.Command{
		Use:   "create IMAGE [NAME] [-- COMMAND...] | --empty [NAME]",
		Short: "Create an instance without starting it",
		Long: `The image is pulled when this host does not have it. COMMAND replaces the image's own command. The name is printed.

With --empty there is no image but an empty disk in a virtual machine, for a system to be installed from the medium of --iso.`,
		Example: `  cleave create base job --memory 256MiB -- sh /job.sh
  cleave start job
  cleave create --empty desk --disk 20GiB --iso installer.iso --boot uefi`,
		ValidArgsFunction: a.complete(1, imageNames),
	}
	a.creationFlags(cmd, &cr)
	cmd.Flags().BoolVar(&empty, "empty", false, "an empty disk in place of an image")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		from := cr.fromArgs
		if empty {
			from = cr.emptyFromArgs
		}
		in, err := from(cmd, args)
		if err != nil {
			return err
		}
		if err := a.create(cmd.Context(), in, false, cr.named); err != nil {
			return err
		}
		fmt.Fprintln(a.out.W, in.Name)
		return nil
	}
	return cmd
}

// reporterFor shows what single commands wait for.
func (a *app) reporter() *progress.Reporter { return progress.New(a.err, 0) }
