package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) exportCmd() *cobra.Command {
	var format, file string
	cmd := &cobra.Command{
		Use:   "export NAME",
		Short: "Write a stopped machine's disk to a file, for use elsewhere",
		Long:  "The machine has a system of its own: it was launched from a disk image, or installed on an empty disk. It can't be started meanwhile. An OVA also says what machine the disk needs.",
		Example: `  cleave export desk --file desk.qcow2
  cleave export desk --format ova | ssh other 'cat >desk.ova'`,
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames()),
	}
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "qcow2", "qcow2, raw or ova")
	named(fs, "format", "qcow2|raw|ova")
	fs.StringVarP(&file, "file", "f", "", "write to a file instead of standard output")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"qcow2", "raw", "ova"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if file == "" && a.out.Width > 0 {
			return usagef("a disk is nothing for a terminal; write it to a file with --file")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		r, err := c.ExportInstance(cmd.Context(), args[0], format)
		if err != nil {
			return err
		}
		return a.saveExport(args[0], file, r)
	}
	return cmd
}
