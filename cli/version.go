package cli

import (
	"fmt"
	"runtime"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/spf13/cobra"
)

// Version is set when a release is built:
// -ldflags "-X github.com/cleave-project/cleave/cli.Version=1.2.3".
var Version = "dev"

// versions is what version prints.
type versions struct {
	Client string        `json:"client"`
	Go     string        `json:"go"`
	Daemon *api.HostInfo `json:"daemon,omitempty"`
}

func (a *app) versionCmd() *cobra.Command {
	var clientOnly bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of this command and of the daemon",
		Args:  args(0, 0, ""),
	}
	f := showFormat(cmd)
	cmd.Flags().BoolVar(&clientOnly, "client", false, "only of this command; asks no daemon")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		v := versions{Client: Version, Go: runtime.Version()}
		if clientOnly {
			if f.name == string(output.Table) {
				_, err := fmt.Fprintln(a.out.W, "cleave", v.Client)
				return err
			}
			return printOne(a, f, v, nil)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		if v.Daemon, err = c.Host(cmd.Context()); err != nil {
			return err
		}
		return printOne(a, f, v, func(s *output.Sections) { a.describeVersions(s, v) })
	}
	return cmd
}

func (a *app) describeVersions(s *output.Sections, v versions) {
	h := v.Daemon
	s.Pair("cleave", v.Client+" ("+v.Go+")")
	s.Pair("cleaved", h.Version)
	s.Head("Host")
	s.Pair("Name", h.Host)
	s.Pair("Kernel", h.Kernel)
	s.Pair("CPUs", fmt.Sprint(h.CPUs))
	s.Pair("Memory", sizeText(h.Memory))
	s.Pair("Daemon up", a.age(h.Started))
	s.Pair("Instances", fmt.Sprintf("%d, %d running", h.Instances, h.Running))
	s.Pair("Data", h.DataDir)
	s.Pair("Run", h.RunDir)
}
