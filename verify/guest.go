package verify

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
)

// guest is an instance of the image base with the probe in it.
type guest struct {
	client *client.Client
	name   string
}

// probePath is where guests have the probe.
const probePath = "/cleave-probe"

// launch makes a guest that is deleted when it stops.
func launch(ctx context.Context, o Options, kind api.Kind, r api.Resources, disk api.Bytes) (*guest, error) {
	name := "verify-" + strings.ToLower(rand.Text()[:8])
	in := &api.Instance{Spec: api.InstanceSpec{
		Kind: kind, Image: "base", Command: []string{"sleep", "86400"}, Ephemeral: true,
		Resources: r, Root: api.RootDisk{Size: disk},
	}}
	in.Name = name
	g := &guest{o.Client, name}
	op, err := o.Client.CreateInstance(ctx, in, true)
	if err == nil {
		_, err = o.Client.Wait(ctx, op, nil)
	}
	if err == nil {
		err = g.put(ctx, o.Probe)
	}
	if err != nil {
		if rerr := g.remove(ctx); rerr != nil && !api.IsCode(rerr, api.CodeNotFound) {
			return nil, fmt.Errorf("%w (and removing %s: %w)", err, name, rerr)
		}
		return nil, err
	}
	return g, nil
}

// removeTime bounds the removal of a guest, also when all has been cancelled.
const removeTime = 2 * time.Minute

func (g *guest) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTime)
	defer cancel()
	op, err := g.client.DeleteInstance(ctx, g.name, true)
	if err == nil {
		_, err = g.client.Wait(ctx, op, nil)
	}
	return err
}

// put copies the probe into the guest.
func (g *guest) put(ctx context.Context, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(probePath, "/"), Mode: 0o755, Size: int64(len(b)), ModTime: time.Now()}); err != nil {
		return err
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return g.client.Put(ctx, g.name, "/", &buf)
}

// run executes the probe in the guest and reads what it prints.
func (g *guest) run(ctx context.Context, result any, args ...string) error {
	s, err := g.client.Exec(ctx, g.name, api.ExecRequest{Command: append([]string{probePath}, args...)})
	if err != nil {
		return err
	}
	var out, errs bytes.Buffer
	exit, err := s.Run(ctx, client.Streams{Stdout: &out, Stderr: &errs})
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return api.Errorf(api.CodeInternal, "%s in guest %s: exit status %d: %s", args[0], g.name, exit.Code, strings.TrimSpace(errs.String()))
	}
	if err := json.Unmarshal(out.Bytes(), result); err != nil {
		return fmt.Errorf("what %s printed in guest %s: %w", args[0], g.name, err)
	}
	return nil
}

// set changes resources while the guest runs.
func (g *guest) set(ctx context.Context, resources map[string]any) error {
	op, err := g.client.PatchInstance(ctx, g.name, 0, map[string]any{"spec": map[string]any{"resources": resources}})
	if err == nil {
		_, err = g.client.Wait(ctx, op, nil)
	}
	return err
}
