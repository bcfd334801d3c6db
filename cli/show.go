package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/output"
	"github.com/cleave-project/cleave/cli/settings"
	"github.com/spf13/cobra"
)

func (a *app) showCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show NAME",
		Aliases:           []string{"info"},
		Short:             "Show one instance: its state and its settings",
		Args:              args(1, 1, "NAME"),
		ValidArgsFunction: a.complete(1, instanceNames()),
	}
	f := showFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		in, err := c.Instance(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return printOne(a, f, in, func(s *output.Sections) { a.describeInstance(s, in) })
	}
	return cmd
}

func (a *app) describeInstance(s *output.Sections, in *api.Instance) {
	s.Pair("Name", in.Name)
	s.Pair("Project", in.Project)
	s.Pair("ID", in.ID)
	s.Styled("State", stateOf(*in), stateStyle(*in))
	if e := in.Status.Error; e != nil {
		s.Styled("Error", e.Message, output.Bad)
		s.Pair("Hint", e.Hint)
	}
	s.Pair("Kind", kindOf(*in))
	s.Pair("Image", familiar(in.Spec.Image))
	s.Pair("Created", a.ago(&in.Created))
	s.Each("Labels", pairs(in.Labels))
	in = describeWaiting(s, in)
	a.describeLife(s, in)
	describeMachine(s, in)
	describeNetwork(s, in)
	describeStorage(s, in)
	describeLimits(s, &in.Spec.Resources)
	describeProcess(s, &in.Spec)
	describeHealth(s, in)
	describeIsolation(s, in)
}

// describeWaiting tells which settings the guest doesn't have yet, and returns
// the instance with those that it has.
func describeWaiting(s *output.Sections, in *api.Instance) *api.Instance {
	if in.Status.Running == nil {
		return in
	}
	when := "From its next start on"
	if in.Status.Phase == api.PhasePaused {
		when = "After its resume, or its next start"
	}
	var lines []string
	for _, ch := range in.Status.Running.Changes(&in.Spec) {
		ch.Path = settings.Instance.KeyOf("spec." + ch.Path)
		lines = append(lines, ch.String())
	}
	s.Each(when, lines)
	now := *in
	now.Spec = *in.Status.Running
	return &now
}

func (a *app) describeLife(s *output.Sections, in *api.Instance) {
	st, sp := &in.Status, &in.Spec
	s.Head("Life")
	s.Pair("Host", st.Host)
	s.Pair("Engine", st.Engine)
	s.Pair("PID on the host", nonzero(st.PID))
	s.Pair("Started", a.ago(st.Started))
	s.Pair("Stopped", a.ago(st.Stopped))
	if st.Exit != nil {
		s.Pair("Last exit", exitText(st.Exit))
	}
	s.Pair("Restart policy", string(sp.Restart))
	s.Pair("Restarts", nonzero(st.Restarts))
	s.Pair("Autostart", yes(sp.Autostart))
	s.Pair("Deleted when it stops", yes(sp.Ephemeral))
	s.Pair("Stop signal", sp.StopSignal)
	if sp.StopSeconds != nil {
		s.Pair("Stop timeout", fmt.Sprintf("%ds", *sp.StopSeconds))
	}
	for _, l := range st.Lost {
		s.Styled("Lost in a crash", l, output.Busy)
	}
}

// describeMachine shows what only guests with a kernel of their own have.
func describeMachine(s *output.Sections, in *api.Instance) {
	m, st := &in.Spec.Machine, &in.Status
	s.Head("Machine")
	s.Pair("Kernel", cmp.Or(st.Kernel, m.Kernel))
	s.Pair("Firmware", m.Firmware)
	s.Pair("Secure Boot", yes(m.SecureBoot))
	s.Pair("TPM", yes(m.TPM))
	s.Pair("Architecture", m.Arch)
	s.Pair("Accelerator", cmp.Or(st.Accel, m.Accel))
	s.Pair("Agent", st.Agent)
	s.Pair("Medium", m.ISO)
	s.Pair("Boot order", strings.Join(m.BootOrder, ", "))
	s.Pair("Reboots", nonzero(st.Reboots))
	s.Pair("Memory saved", yes(st.Saved))
	if m.CloudInit != nil {
		s.Pair("cloud-init", fmt.Sprintf("%d keys, %d bytes of user data", len(m.CloudInit.SSHKeys), len(m.CloudInit.UserData)))
	}
}

func describeNetwork(s *output.Sections, in *api.Instance) {
	s.Head("Network")
	for _, p := range in.Status.NICs {
		addrs := strings.Join(slices.DeleteFunc([]string{p.IPv4, p.IPv6}, func(a string) bool { return a == "" }), "  ")
		s.Pair(p.Name, strings.TrimSpace(addrs+"  on "+p.Network))
		s.Pair("", "MAC "+p.MAC)
	}
	s.Each("Published", ports(in.Spec.Publish))
	s.Pair("Host name", in.Spec.Hostname)
}

func describeStorage(s *output.Sections, in *api.Instance) {
	s.Head("Storage")
	s.Pair("Root size", sizeText(in.Spec.Root.Size))
	s.Pair("Root pool", in.Spec.Root.Pool)
	var lines []string
	for _, m := range in.Spec.Mounts {
		line := m.Target + "  from volume " + m.Volume
		if m.HostPath != "" {
			line = m.Target + "  from the host's " + m.HostPath
		}
		if m.ReadOnly {
			line += " (read-only)"
		}
		lines = append(lines, line)
	}
	s.Each("Volumes", lines)
	s.Pair("/dev/shm", sizeText(in.Spec.ShmSize))
}

func describeLimits(s *output.Sections, r *api.Resources) {
	perSecond := func(b api.Bytes) string {
		if b == 0 {
			return ""
		}
		return b.String() + "/s"
	}
	s.Head("Limits")
	s.Pair("CPUs", number(r.CPUs))
	s.Pair("CPU weight", nonzero(r.CPUWeight))
	s.Pair("CPU set", r.CPUSet)
	s.Pair("Memory", sizeText(r.Memory))
	s.Pair("Memory, soft", sizeText(r.MemorySoft))
	s.Pair("Swap", sizeText(r.Swap))
	s.Pair("Processes", nonzero(r.PIDs))
	s.Pair("Disk reads", perSecond(r.DiskRead))
	s.Pair("Disk writes", perSecond(r.DiskWrite))
	s.Pair("Disk reads/s", nonzero(r.DiskReadIO))
	s.Pair("Disk writes/s", nonzero(r.DiskWriteO))
	s.Pair("Network in", perSecond(r.NetIn))
	s.Pair("Network out", perSecond(r.NetOut))
}

func describeProcess(s *output.Sections, sp *api.InstanceSpec) {
	s.Head("Process")
	s.Pair("Entry point", quoted(sp.Entrypoint))
	s.Pair("Command", quoted(sp.Command))
	s.Each("Environment", pairs(sp.Env))
	s.Pair("User", sp.User)
	s.Pair("Directory", sp.WorkDir)
	s.Pair("Terminal", yes(sp.TTY))
	s.Pair("Standard input", yes(sp.Stdin))
	if sp.Init != nil {
		s.Pair("System guest", fmt.Sprint(*sp.Init))
	}
}

func describeHealth(s *output.Sections, in *api.Instance) {
	s.Head("Health")
	s.Pair("State", in.Status.Health)
	h := in.Spec.Health
	if h == nil {
		return
	}
	span := func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf("%ds", n)
	}
	if len(h.Command) == 0 {
		s.Pair("Check", "turned off")
	}
	s.Pair("Check", quoted(h.Command))
	s.Pair("Interval", span(h.IntervalSeconds))
	s.Pair("Timeout", span(h.TimeoutSeconds))
	s.Pair("Start", span(h.StartSeconds))
	s.Pair("Retries", nonzero(h.Retries))
}

func describeIsolation(s *output.Sections, in *api.Instance) {
	sp := &in.Spec
	s.Head("Isolation")
	if in.Status.UIDBase != 0 {
		s.Pair("IDs on the host", fmt.Sprintf("%d to %d", in.Status.UIDBase, in.Status.UIDBase+65535))
	}
	s.Pair("Added capabilities", strings.Join(sp.Security.AddCapabilities, " "))
	s.Pair("Dropped capabilities", strings.Join(sp.Security.DropCapabilities, " "))
	s.Pair("No new privileges", yes(sp.Security.NoNewPrivileges))
	s.Pair("Read-only root", yes(sp.Security.ReadOnlyRoot))
	s.Each("Kernel parameters", pairs(sp.Sysctls))
	var limits []string
	for _, k := range slices.Sorted(maps.Keys(sp.Ulimits)) {
		limits = append(limits, fmt.Sprintf("%s=%d:%d", k, sp.Ulimits[k].Soft, sp.Ulimits[k].Hard))
	}
	s.Each("Resource limits", limits)
	for _, l := range in.Status.Loosened {
		s.Styled("Looser than usual", l, output.Busy)
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// quoted prints a command so that a shell would read it again.
func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`;&|<>()*?[]{}#~!") {
			out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}
