package stack

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/settings"
)

// Action is what is to be done about one resource.
type Action string

// Actions.
const (
	Keep    Action = "keep"
	Create  Action = "create"
	Update  Action = "update"  // by Patch
	Replace Action = "replace" // what changed can only be chosen at creation
	Power   Action = "power"   // only to be started, stopped or paused
	Delete  Action = "delete"  // no longer in the file
)

// Step is what is to be done about one resource.
type Step struct {
	Action   Action
	Kind     string // network, volume, instance
	Name     string
	Patch    map[string]any // of Update
	Fixed    []string       // of Replace: keys of what can't be changed
	Power    api.Power      // state to bring it to after Update and Power; empty if it is in it
	Revision int64          // that the comparison was made with
	Instance *api.Instance  // as wanted
	Network  *api.Network
	Volume   *api.Volume
	Diff     []Line
}

// Live is what the daemon has.
type Live struct {
	Networks  []api.Network
	Volumes   []api.Volume
	Instances []api.Instance
}

// Plan is all steps of applying a stack, in the order in which they are done;
// Levels are the steps of the instances.
type Plan struct {
	Networks, Volumes []Step
	Levels            [][]Step
	Gone              []Step // for prune: instances, then networks
}

// Steps lists all steps that change something; those of Gone only for prune.
func (p *Plan) Steps(prune bool) []Step {
	all := slices.Concat(p.Networks, p.Volumes)
	for _, l := range p.Levels {
		all = append(all, l...)
	}
	if prune {
		all = append(all, p.Gone...)
	}
	return slices.DeleteFunc(all, func(s Step) bool { return s.Action == Keep })
}

// Compare makes the plan that brings live to what the stack says. A name
// that is taken by something outside the stack is an error.
func (s *Stack) Compare(live Live) (*Plan, error) {
	p := &Plan{}
	for i := range s.Networks {
		want := &s.Networks[i]
		step, err := compareExtra(s.Name, "network", &want.Meta, want.Spec, find(live.Networks, want.Name))
		if err != nil {
			return nil, err
		}
		step.Network = want
		p.Networks = append(p.Networks, *step)
	}
	for i := range s.Volumes {
		want := &s.Volumes[i]
		step, err := compareExtra(s.Name, "volume", &want.Meta, want.Spec, find(live.Volumes, want.Name))
		if err != nil {
			return nil, err
		}
		step.Volume = want
		p.Volumes = append(p.Volumes, *step)
	}
	levels, err := s.Levels()
	if err != nil {
		return nil, err
	}
	for _, level := range levels {
		var steps []Step
		for i := range level {
			step, err := compareInstance(s.Name, &level[i], find(live.Instances, level[i].Name))
			if err != nil {
				return nil, err
			}
			steps = append(steps, *step)
		}
		p.Levels = append(p.Levels, steps)
	}
	p.Gone = s.gone(live)
	return p, nil
}

// find returns the item with a name, or nil.
func find[T any](items []T, name string) *T {
	for i := range items {
		if metaOf(&items[i]).Name == name {
			return &items[i]
		}
	}
	return nil
}

func metaOf[T any](v *T) *api.Meta { return any(v).(api.Object).GetMeta() }

func foreign(stack, kind, name string) error {
	return api.Errorf(api.CodeExists, "%s %q exists and is not of stack %q", kind, name, stack).
		WithHint("take it in with 'cleave %s set %s label.%s=%s', or choose another name", kind, name, Label, stack)
}

// gone lists what has the stack's label and isn't in the file any more.
// Volumes are left alone: they hold data.
func (s *Stack) gone(live Live) []Step {
	var steps []Step
	for i := range live.Instances {
		in := &live.Instances[i]
		if in.Labels[Label] == s.Name && find(s.Instances, in.Name) == nil {
			steps = append(steps, Step{
				Action: Delete, Kind: "instance", Name: in.Name,
				Diff: Unified("instance/"+in.Name+" (now)", "/dev/null", text("instance", document(in.Labels, Normal(in.Spec))), ""),
			})
		}
	}
	for i := range live.Networks {
		n := &live.Networks[i]
		if n.Labels[Label] == s.Name && find(s.Networks, n.Name) == nil {
			steps = append(steps, Step{
				Action: Delete, Kind: "network", Name: n.Name,
				Diff: Unified("network/"+n.Name+" (now)", "/dev/null", text("network", document(n.Labels, n.Spec)), ""),
			})
		}
	}
	return steps
}

// compareExtra compares a network or a volume: only what the file mentions
// counts, as the daemon chooses the rest.
func compareExtra[T any](stack, kind string, want *api.Meta, spec any, live *T) (*Step, error) {
	step := &Step{Action: Keep, Kind: kind, Name: want.Name}
	title := kind + "/" + want.Name
	wanted := document(want.Labels, spec)
	if live == nil {
		step.Action, step.Diff = Create, Unified("/dev/null", title+" (file)", "", text(kind, wanted))
		return step, nil
	}
	m := metaOf(live)
	if m.Labels[Label] != stack {
		return nil, foreign(stack, kind, want.Name)
	}
	have := document(m.Labels, specOf(live))
	patch := mergePatch(have, wanted, false)
	if len(patch) == 0 {
		return step, nil
	}
	step.Action, step.Patch, step.Revision = Update, patch, m.Revision
	step.Diff = Unified(title+" (now)", title+" (file)", text(kind, have), text(kind, merged(have, patch)))
	return step, nil
}

func specOf(v any) any {
	switch r := v.(type) {
	case *api.Network:
		return r.Spec
	case *api.Volume:
		return r.Spec
	}
	return nil
}

// fixed lists the keys by which two documents of an instance differ and that
// can't be changed: those that are chosen for good, and the kind unless it is
// stopped.
func fixed(have, want map[string]any, stopped bool) []string {
	var keys []string
	for _, s := range settings.Instance {
		if (s.Fixed || s.Key == "kind" && !stopped) && !reflect.DeepEqual(at(have, s.Path), at(want, s.Path)) {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

func compareInstance(stack string, want, live *api.Instance) (*Step, error) {
	step := &Step{Action: Keep, Kind: "instance", Name: want.Name, Instance: want}
	title := "instance/" + want.Name
	wanted := document(want.Labels, Normal(want.Spec))
	if live == nil {
		step.Action, step.Diff = Create, Unified("/dev/null", title+" (file)", "", text("instance", wanted))
		return step, nil
	}
	if live.Labels[Label] != stack {
		return nil, foreign(stack, "instance", want.Name)
	}
	have := document(live.Labels, Normal(live.Spec))
	patch := mergePatch(have, wanted, true)
	if labels, ok := patch["labels"].(map[string]any); ok {
		// Labels that others gave it stay.
		for k, v := range labels {
			if v == nil {
				delete(labels, k)
			}
		}
		if len(labels) == 0 {
			delete(patch, "labels")
		}
	}
	if power := wantedPower(want, live); live.Spec.Power != power {
		step.Action, step.Power = Power, power
		step.Diff = Unified(title+" (now)", title+" (file)", "power: "+string(live.Spec.Power)+"\n", "power: "+string(power)+"\n")
	}
	if len(patch) == 0 {
		return step, nil
	}
	step.Action, step.Patch, step.Revision = Update, patch, live.Revision
	stopped := live.Status.Phase == api.PhaseStopped || live.Status.Phase == api.PhaseFailed
	if step.Fixed = fixed(have, merged(have, patch), stopped); step.Fixed != nil {
		step.Action = Replace
	}
	step.Diff = append(Unified(title+" (now)", title+" (file)", text("instance", have), text("instance", merged(have, patch))), step.Diff...)
	return step, nil
}

// wantedPower is running unless the file says otherwise. What has done its
// work (ended well, and is not to be restarted) isn't begun again.
func wantedPower(want, live *api.Instance) api.Power {
	st := &live.Status
	finished := st.Phase == api.PhaseStopped && st.Exit != nil && *st.Exit == (api.ExitStatus{}) &&
		(want.Spec.Restart == "" || want.Spec.Restart == api.RestartNever)
	switch {
	case want.Spec.Power != "":
		return want.Spec.Power
	case finished:
		return live.Spec.Power
	}
	return api.PowerRunning
}

// Normal is a spec in which what is the default is left out, so that two that
// mean the same are the same. Power is compared apart.
func Normal(s api.InstanceSpec) api.InstanceSpec {
	s.Power = ""
	drop(&s.Kind, api.KindContainer)
	drop(&s.Restart, api.RestartNever)
	drop(&s.Root.Pool, "default")
	s.Publish = slices.Clone(s.Publish)
	for i := range s.Publish {
		drop(&s.Publish[i].Protocol, "tcp")
	}
	if s.NICs != nil {
		s.NICs = append([]api.NIC{}, s.NICs...)
		for i := range s.NICs {
			drop(&s.NICs[i].Network, "default")
		}
		if len(s.NICs) == 1 && s.NICs[0] == (api.NIC{}) {
			s.NICs = nil
		}
	}
	return s
}

func drop[T comparable](p *T, standard T) {
	if *p == standard {
		var zero T
		*p = zero
	}
}

// document is what is compared, as JSON would have it.
func document(labels map[string]string, spec any) map[string]any {
	b, err := json.Marshal(map[string]any{"labels": labels, "spec": spec})
	if err != nil {
		panic(err) // the types of the API can be encoded
	}
	var doc map[string]any
	if err := json.Unmarshal(b, &doc); err != nil {
		panic(err)
	}
	if doc["labels"] == nil {
		delete(doc, "labels")
	}
	return doc
}

// mergePatch makes the JSON merge patch (RFC 7396) from one document to
// another. Without remove, what only the first one has stays.
func mergePatch(from, to map[string]any, remove bool) map[string]any {
	patch := map[string]any{}
	for k, want := range to {
		have, ok := from[k]
		w, isMap := want.(map[string]any)
		h, wasMap := have.(map[string]any)
		switch {
		case isMap && (wasMap || !ok):
			if sub := mergePatch(h, w, remove); len(sub) > 0 {
				patch[k] = sub
			}
		case !ok || !reflect.DeepEqual(have, want):
			patch[k] = want
		}
	}
	for k := range from {
		if _, ok := to[k]; !ok && remove {
			patch[k] = nil
		}
	}
	return patch
}

// merged applies a merge patch.
func merged(doc, patch map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range doc {
		out[k] = v
	}
	for k, v := range patch {
		sub, isMap := v.(map[string]any)
		switch {
		case v == nil:
			delete(out, k)
		case isMap:
			old, _ := out[k].(map[string]any)
			out[k] = merged(old, sub)
		default:
			out[k] = v
		}
	}
	return out
}

// at is what a document has at a path like spec.root.pool.
func at(doc map[string]any, path string) any {
	var v any = doc
	for step := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[step]
	}
	return v
}
