package control

import (
	"context"
	"reflect"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
)

// What a running guest can't be given waits for its next start, and what a
// paused machine can't be asked for until its resume. Meanwhile
// Status.Running says what it runs with.

// inForce is an instance with the spec that its guest runs with.
func inForce(in *api.Instance) *api.Instance {
	n := *in
	if in.Status.Running != nil {
		n.Spec = *in.Status.Running
	}
	return &n
}

// differing is running, if it isn't what spec says.
func differing(running *api.InstanceSpec, spec api.InstanceSpec) *api.InstanceSpec {
	running.Power = spec.Power
	if len(running.Changes(&spec)) == 0 {
		return nil
	}
	return running
}

// restartFields are what a running guest can't be given.
func restartFields(s *api.InstanceSpec) []any {
	return []any{
		&s.Entrypoint, &s.Command, &s.Env, &s.User, &s.WorkDir, &s.Hostname, &s.TTY, &s.Stdin, &s.Mounts,
		&s.Sysctls, &s.Ulimits, &s.ShmSize, &s.Security, &s.Machine,
	}
}

// keepRestartFields leaves in live what a running guest has. Its medium and
// how long it may take to boot are no part of what it is.
func keepRestartFields(live, was *api.InstanceSpec) {
	iso, boot := live.Machine.ISO, live.Machine.BootSeconds
	from := restartFields(was)
	for i, f := range restartFields(live) {
		reflect.ValueOf(f).Elem().Set(reflect.ValueOf(from[i]).Elem())
	}
	live.Machine.ISO, live.Machine.BootSeconds = iso, boot
}

// changesMachine tells whether a guest that goes on from its memory would
// find another machine than it was in.
func changesMachine(old, now api.InstanceSpec) bool {
	kept := now
	keepRestartFields(&kept, &old)
	return len(kept.Changes(&now)) > 0 || old.Resources != now.Resources || old.Root != now.Root || old.Machine.ISO != now.Machine.ISO || !sameNICs(old, now)
}

// savedSpec is what a guest is started with that goes on from its memory.
func savedSpec(in *api.Instance) *api.Instance {
	if in.Status.Running == nil {
		return in
	}
	n, was := *in, in.Status.Running
	keepRestartFields(&n.Spec, was)
	n.Spec.Resources, n.Spec.Root, n.Spec.Machine.ISO = was.Resources, was.Root, was.Machine.ISO
	n.Spec.NICs = was.NICs
	return &n
}

// limits changes the limits of a running guest.
func (t *task) limits(ctx context.Context, g *guest) change {
	ch := change{name: "limits", apply: func(in *api.Instance) error { return t.c.limit(ctx, in) }}
	if !isMachine(t.in) {
		return ch
	}
	if g.paused {
		ch.apply = func(*api.Instance) error {
			return api.Errorf(api.CodeConflict, "instance %q is paused: its kernel can't be asked to make do with less, nor told of more", t.in.Name)
		}
	}
	ch.wait = func(live, was *api.InstanceSpec, field string) bool {
		l, w := &live.Resources, was.Resources
		switch {
		case !g.paused && field == "spec.resources.memory" && l.Memory != w.Memory:
			l.Memory = w.Memory
		case !g.paused && field == "spec.resources.cpus" && l.CPUs != w.CPUs:
			l.CPUs = w.CPUs
		default:
			*l = w
			return false
		}
		return *l != w
	}
	return ch
}

// resumed gives a machine the limits that were changed while it was paused.
// What it can't be given waits on, for its next start.
func (t *task) resumed(ctx context.Context, g *guest) *api.InstanceSpec {
	if !isMachine(t.in) || t.in.Status.Running == nil {
		return t.in.Status.Running
	}
	live, was := t.c.instances.Clone(inForce(t.in)), inForce(t.in)
	live.Spec.Resources = t.in.Spec.Resources
	ch := t.limits(ctx, g)
	if _, err := ch.try(live, was); err != nil {
		t.c.log.Error("limits of a resumed guest could not be changed", "instance", t.in.Name, "error", err)
		live.Spec.Resources = was.Spec.Resources
	}
	return differing(&live.Spec, t.in.Spec)
}

// waiting tells which of the changes between old and now wait, and for what;
// why has reasons by path.
func waiting(g *guest, old, now, live *api.Instance, why map[string][]string) string {
	asked := old.Spec.Changes(&now.Spec)
	var start, resume []string
	for _, ch := range live.Spec.Changes(&now.Spec) {
		if !slices.ContainsFunc(asked, func(a api.Change) bool { return a.Path == ch.Path }) {
			continue // an earlier one
		}
		if g.paused && strings.HasPrefix(ch.Path, "resources.") {
			resume = append(resume, ch.String())
		} else {
			text := ch.String()
			if reasons := why[ch.Path]; len(reasons) > 0 {
				text += " (" + strings.Join(reasons, "; ") + ")"
			}
			start = append(start, text)
		}
	}
	var texts []string
	if len(resume) > 0 {
		texts = append(texts, "takes effect when it is resumed: "+strings.Join(resume, ", "))
	}
	if len(start) > 0 {
		texts = append(texts, "takes effect at the next start: "+strings.Join(start, ", "))
	}
	return strings.Join(texts, "; ")
}
