package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/cleave-project/cleave/verify/probe"
)

// Limits that are set while the guest runs. A limit is held when at most so
// much more than it was got: schedulers and token buckets let bursts pass.
const (
	limitCPUs = 0.5
	limitDisk = 8 * api.MiB // per second
	limitNet  = 4 * api.MiB // per second
	slack     = 1.25
	sinkPort  = "7007"
)

// control has the guest try to take what it may not.
func (v *verification) control(ctx context.Context) error {
	kind := string(v.result.Kind)
	v.Progress(kind + ": starting a second guest")
	other, err := launch(ctx, v.Options, api.KindContainer, api.Resources{}, givenDisk)
	if err != nil {
		return err
	}
	defer func() { _ = other.remove(ctx) }()
	mark, stop, err := other.sink(ctx)
	if err != nil {
		return err
	}
	defer stop()
	for _, a := range []struct {
		name string
		try  func(context.Context) (Attempt, error)
	}{
		{"CPU", v.cpu},
		{"memory", v.memory},
		{"processes", v.processes},
		{"disk space", v.disk},
		{"disk writes", v.diskRate},
		{"network out", func(ctx context.Context) (Attempt, error) { return v.netRate(ctx, other) }},
		{"another guest's processes", func(ctx context.Context) (Attempt, error) { return v.strangers(ctx, other, mark) }},
		{"the host's files", v.hostFiles},
		{"the host's services", v.hostServices},
	} {
		v.Progress(kind + ": trying to take more: " + a.name)
		got, err := a.try(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		got.Name = a.name
		v.result.Control = append(v.result.Control, got)
	}
	return nil
}

// held compares what was got with a limit.
func held(unit string, limit, got float64, note string) Attempt {
	return Attempt{Unit: unit, Limit: limit, Got: got, Held: got <= limit*slack, Note: note}
}

// cpu spins in the guest and looks from outside at what that took.
func (v *verification) cpu(ctx context.Context) (Attempt, error) {
	if err := v.guest.set(ctx, map[string]any{"cpus": limitCPUs}); err != nil {
		return Attempt{}, err
	}
	before, err := v.Client.Stats(ctx, v.guest.name)
	if err != nil {
		return Attempt{}, err
	}
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "spin", "4"); err != nil {
		return Attempt{}, err
	}
	after, err := v.Client.Stats(ctx, v.guest.name)
	if err != nil {
		return Attempt{}, err
	}
	if err := v.guest.set(ctx, map[string]any{"cpus": nil}); err != nil {
		return Attempt{}, err
	}
	got := float64(after.CPUNanos-before.CPUNanos) / float64(after.Time.Sub(before.Time).Nanoseconds())
	return held("CPUs", limitCPUs, got, ""), nil
}

// memory eats twice what there is. A machine's memory is its size; what its
// monitor takes beside is the host's affair and not the guest's.
func (v *verification) memory(ctx context.Context) (Attempt, error) {
	limit := float64(givenMemory / api.MiB)
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "eat", fmt.Sprint(2*limit)); err != nil {
		return Attempt{}, err
	}
	a := held("MiB", limit, t.Amount, t.End)
	a.Held = a.Got <= limit // memory has no bursts
	return a, nil
}

func (v *verification) processes(ctx context.Context) (Attempt, error) {
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "multiply", fmt.Sprint(3*givenPIDs)); err != nil {
		return Attempt{}, err
	}
	a := held("processes", givenPIDs, t.Amount, t.End)
	a.Held = a.Got <= givenPIDs
	return a, nil
}

func (v *verification) disk(ctx context.Context) (Attempt, error) {
	limit := float64(givenDisk / api.MiB)
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "fill", "/", fmt.Sprint(2*limit)); err != nil {
		return Attempt{}, err
	}
	a := held("MiB", limit, t.Amount, t.End)
	a.Held = a.Got <= limit
	return a, nil
}

func (v *verification) diskRate(ctx context.Context) (Attempt, error) {
	err := v.guest.set(ctx, map[string]any{"diskWrite": limitDisk})
	if api.IsCode(err, api.CodeUnsupported) {
		return Attempt{Unit: "MiB/s", Limit: float64(limitDisk / api.MiB), Refused: fmt.Sprintf("kind %s has no such limit on this host: `cleave doctor` says why", v.result.Kind)}, nil
	} else if err != nil {
		return Attempt{}, err
	}
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "fill", "/", "40"); err != nil {
		return Attempt{}, err
	}
	if err := v.guest.set(ctx, map[string]any{"diskWrite": nil}); err != nil {
		return Attempt{}, err
	}
	if t.Seconds == 0 {
		return Attempt{}, fmt.Errorf("nothing could be written: %s", t.End)
	}
	return held("MiB/s", float64(limitDisk/api.MiB), t.Amount/t.Seconds, ""), nil
}

func (v *verification) netRate(ctx context.Context, other *guest) (Attempt, error) {
	addr, err := other.address(ctx)
	if err != nil {
		return Attempt{}, err
	}
	if err := v.guest.set(ctx, map[string]any{"netOut": limitNet}); err != nil {
		return Attempt{}, err
	}
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "send", net.JoinHostPort(addr.String(), sinkPort), "5"); err != nil {
		return Attempt{}, err
	}
	if err := v.guest.set(ctx, map[string]any{"netOut": nil}); err != nil {
		return Attempt{}, err
	}
	if t.Amount == 0 || t.Seconds == 0 {
		return Attempt{}, fmt.Errorf("nothing could be sent: %s", t.End)
	}
	return held("MiB/s", float64(limitNet/api.MiB), t.Amount/t.Seconds, ""), nil
}

// strangers looks for the other guest's process and kills what it finds; the
// other must go on.
func (v *verification) strangers(ctx context.Context, other *guest, mark string) (Attempt, error) {
	before, err := v.Client.Instance(ctx, other.name)
	if err != nil {
		return Attempt{}, err
	}
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "see", mark); err != nil {
		return Attempt{}, err
	}
	after, err := v.Client.Instance(ctx, other.name)
	if err != nil {
		return Attempt{}, err
	}
	a := Attempt{Unit: "processes", Got: t.Amount, Note: t.End, Held: t.Amount == 0 && t.End == ""}
	if after.Status.Phase != api.PhaseRunning || after.Status.PID != before.Status.PID {
		a.Held, a.Note = false, "the other guest is "+string(after.Status.Phase)
	}
	return a, nil
}

// hostFiles looks for a file that was made on the host.
func (v *verification) hostFiles(ctx context.Context) (Attempt, error) {
	path, err := filepath.Abs(filepath.Join(v.host.dir, "secret"))
	if err != nil {
		return Attempt{}, err
	}
	if err := os.WriteFile(path, []byte("of the host"), 0o644); err != nil {
		return Attempt{}, err
	}
	var t probe.Taken
	if err := v.guest.run(ctx, &t, "find", path); err != nil {
		return Attempt{}, err
	}
	return Attempt{Unit: "files", Got: t.Amount, Held: t.Amount == 0}, nil
}

// hostServices listens on all addresses of the host and has the guest
// connect to the one that it can route to: its gateway.
func (v *verification) hostServices(ctx context.Context) (Attempt, error) {
	n, err := v.Client.Network(ctx, "default")
	if err != nil {
		return Attempt{}, err
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return Attempt{}, err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return Attempt{}, err
	}
	a := Attempt{Unit: "connections", Held: true}
	for _, cidr := range []string{n.Status.IPv4, n.Status.IPv6} {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			continue // a network without this family
		}
		var t probe.Taken
		if err := v.guest.run(ctx, &t, "reach", net.JoinHostPort(p.Addr().String(), port)); err != nil {
			return Attempt{}, err
		}
		a.Got += t.Amount
	}
	a.Held = a.Got == 0
	return a, nil
}

// sink has a guest take what is sent to it, in a process that bears a mark.
func (g *guest) sink(ctx context.Context) (mark string, stop func(), err error) {
	mark = "mark-of-" + g.name
	s, err := g.client.Exec(ctx, g.name, api.ExecRequest{Command: []string{probePath, "sink", ":" + sinkPort, mark}})
	if err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() { // ends with the guest, or stop
		defer close(done)
		_, err := s.Run(ctx, client.Streams{Stdout: w})
		w.CloseWithError(errors.Join(errors.New("the sink has ended"), err))
	}()
	stop = func() {
		cancel()
		r.Close()
		<-done
	}
	timer := time.AfterFunc(time.Minute, func() { w.CloseWithError(errors.New("the sink doesn't listen")) })
	defer timer.Stop()
	if _, err := r.Read(make([]byte, 64)); err != nil { // it says so when it listens
		stop()
		return "", nil, err
	}
	return mark, stop, nil
}

// address is the guest's on its first network.
func (g *guest) address(ctx context.Context) (netip.Addr, error) {
	in, err := g.client.Instance(ctx, g.name)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, p := range in.Status.NICs {
		if pre, err := netip.ParsePrefix(p.IPv4); err == nil {
			return pre.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("guest %s has no address", g.name)
}
