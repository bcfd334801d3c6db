// Package verify measures, on the user's own host and through the API alone,
// the three properties that define a virtual machine monitor (Popek and
// Goldberg, "Formal Requirements for Virtualizable Third Generation
// Architectures", 1974) for every kind of wall that the host has:
//
//   - equivalence: a program of questions gets the same answers inside as
//     outside; what differs is listed;
//   - efficiency: work per second inside as a ratio to outside;
//   - control: a guest that tries to take more than it was given, or to reach
//     what isn't its own, is held.
package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/cleave-project/cleave/verify/probe"
)

// Options say what to verify.
type Options struct {
	// Client talks to the daemon of this host.
	Client *client.Client
	// Probe is the path of cleave-probe.
	Probe string
	// Kinds are the walls; all if empty.
	Kinds []api.Kind
	// Quick measures each kind of work for a fifth of a second instead of one:
	// enough to see what holds, and too short for good figures.
	Quick bool
	// Progress is told what goes on; may be nil.
	Progress func(step string)
}

// Report is what was found.
type Report struct {
	Host    string    `json:"host"`
	Kernel  string    `json:"kernel"`
	Version string    `json:"version"`
	Time    time.Time `json:"time"`
	Results []Result  `json:"results"`
}

// Result is that of one kind.
type Result struct {
	Kind   api.Kind   `json:"kind"`
	Engine string     `json:"engine,omitempty"`
	Accel  string     `json:"accel,omitempty"`
	Error  *api.Error `json:"error,omitempty"` // why it could not be verified, or not to the end

	Asked       int          `json:"asked"` // questions
	Differences []Difference `json:"differences"`
	Efficiency  []Ratio      `json:"efficiency"`
	Control     []Attempt    `json:"control"`
}

// Difference is a question that is answered otherwise inside.
type Difference struct {
	Area    string `json:"area"`
	Name    string `json:"name"`
	Outside string `json:"outside"`
	Inside  string `json:"inside"`
}

// Ratio compares work.
type Ratio struct {
	Name    string  `json:"name"`
	Unit    string  `json:"unit"` // per second
	Outside float64 `json:"outside"`
	Inside  float64 `json:"inside"`
	Ratio   float64 `json:"ratio"` // inside to outside
}

// Attempt is one to take more than was given.
type Attempt struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit,omitempty"`
	Limit float64 `json:"limit"`
	Got   float64 `json:"got"`
	Held  bool    `json:"held"`
	Note  string  `json:"note,omitempty"`
	// Refused is why the limit can't be had here; there is nothing to hold.
	Refused string `json:"refused,omitempty"`
}

// Violated tells whether a guest could take what it may not.
func (r *Report) Violated() bool {
	return slices.ContainsFunc(r.Results, func(r Result) bool {
		return slices.ContainsFunc(r.Control, func(a Attempt) bool { return !a.Held && a.Refused == "" })
	})
}

// Run verifies each kind, one after the other.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if len(o.Kinds) == 0 {
		o.Kinds = []api.Kind{api.KindContainer, api.KindPVM, api.KindVM}
	}
	host, err := o.Client.Host(ctx)
	if err != nil {
		return nil, err
	}
	outside, err := newOutside(o.Probe)
	if err != nil {
		return nil, err
	}
	defer outside.close()
	r := &Report{Host: host.Host, Kernel: host.Kernel, Version: host.Version, Time: time.Now().UTC()}
	for _, k := range o.Kinds {
		v := &verification{Options: o, host: outside, result: Result{Kind: k}}
		if err := v.run(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if !errors.As(err, &v.result.Error) {
				v.result.Error = api.Errorf(api.CodeInternal, "%w", err)
			}
		}
		r.Results = append(r.Results, v.result)
	}
	return r, nil
}

// verification is that of one kind.
type verification struct {
	Options
	host   *outside
	guest  *guest
	result Result
}

// What the guest under test is given.
const (
	givenMemory = 192 * api.MiB
	givenPIDs   = 200
	givenDisk   = 96 * api.MiB
)

func (v *verification) run(ctx context.Context) (err error) {
	kind := string(v.result.Kind)
	v.Progress(kind + ": starting a guest")
	v.guest, err = launch(ctx, v.Options, v.result.Kind, api.Resources{Memory: givenMemory, PIDs: givenPIDs}, givenDisk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.guest.remove(ctx)) }()
	in, err := v.Client.Instance(ctx, v.guest.name)
	if err != nil {
		return err
	}
	v.result.Engine, v.result.Accel = in.Status.Engine, in.Status.Accel
	v.Progress(kind + ": asking what holds")
	if err := v.ask(ctx); err != nil {
		return err
	}
	v.Progress(kind + ": measuring work")
	if err := v.measure(ctx); err != nil {
		return err
	}
	return v.control(ctx)
}

// ask compares the answers.
func (v *verification) ask(ctx context.Context) error {
	var out, in []probe.Answer
	if err := v.host.run(ctx, &out, "ask", v.host.dir); err != nil {
		return err
	}
	if err := v.guest.run(ctx, &in, "ask", "/tmp"); err != nil {
		return err
	}
	v.result.Differences = []Difference{}
	v.result.Asked = len(out)
	for i, o := range out {
		inside := "not answered"
		if i < len(in) && in[i].Name == o.Name {
			inside = in[i].Text
		}
		if inside != o.Text {
			v.result.Differences = append(v.result.Differences, Difference{Area: o.Area, Name: o.Name, Outside: o.Text, Inside: inside})
		}
	}
	return nil
}

// measure compares the work, outside right before inside.
func (v *verification) measure(ctx context.Context) error {
	var out, in []probe.Figure
	each := "1000" // ms
	if v.Quick {
		each = "200"
	}
	if err := v.host.run(ctx, &out, "measure", v.host.dir, each); err != nil {
		return err
	}
	if err := v.guest.run(ctx, &in, "measure", "/tmp", each); err != nil {
		return err
	}
	for i, o := range out {
		if i < len(in) && in[i].Name == o.Name && o.Rate > 0 {
			v.result.Efficiency = append(v.result.Efficiency, Ratio{Name: o.Name, Unit: o.Unit, Outside: o.Rate, Inside: in[i].Rate, Ratio: in[i].Rate / o.Rate})
		}
	}
	return nil
}

// outside runs the probe on the host.
type outside struct{ probe, dir string }

func newOutside(path string) (*outside, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, api.Errorf(api.CodeNotFound, "the program that verify runs inside and outside of guests: %w", err).
			WithHint("`make build` puts it beside cleave")
	}
	dir, err := os.MkdirTemp("", "cleave-verify")
	return &outside{path, dir}, err
}

func (o *outside) close() { os.RemoveAll(o.dir) }

func (o *outside) run(ctx context.Context, result any, args ...string) error {
	out, err := exec.CommandContext(ctx, o.probe, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return fmt.Errorf("run %s %s on the host: %w", o.probe, args[0], err)
	}
	return json.Unmarshal(out, result)
}
