package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
	"github.com/cleave-project/cleave/control"
	"github.com/cleave-project/cleave/keeper"
)

// The client of this repository and this server must mean the same.
func TestOwnClientIsUnderstood(t *testing.T) {
	b := startGuest(t)
	for i := range 1100 {
		b.images = append(b.images, api.Image{Digest: fmt.Sprintf("sha256:%04d", i)})
	}
	b.events = func(_ context.Context, since control.Since, yield func(api.Event) error) error {
		return yield(api.Event{ID: since.ID + 1, Type: "instance.started", Project: "default"})
	}
	b.logs = func(_ context.Context, _ keeper.LogOptions, yield func(keeper.LogEntry) error) error {
		_ = yield(keeper.LogEntry{Stream: "stderr", Data: []byte("oops")})
		return api.Errorf(api.CodeCorrupt, "the log is damaged")
	}
	h := start(t, b)
	c, err := client.New(client.Options{Socket: h.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()

	if images, err := client.Collect(c.Images(ctx)); err != nil || len(images) != 1100 {
		t.Errorf("Images: %d, %v", len(images), err)
	}
	for _, f := range []client.Filter{{}, {Labels: map[string]string{"a": "b"}, Phase: api.PhaseRunning, Prefix: "w", AllProjects: true}} {
		if all, err := client.Collect(c.Instances(ctx, f)); err != nil || len(all) != 1 {
			t.Errorf("Instances %+v: %v, %v", f, all, err)
		}
	}
	if _, err := c.Instance(ctx, "none"); !api.IsCode(err, api.CodeNotFound) {
		t.Errorf("Instance: %v", err)
	}
	if _, err := c.PatchInstance(ctx, "web", 9, map[string]any{"labels": map[string]any{"a": "b"}}); !api.IsCode(err, api.CodeConflict) {
		t.Errorf("PatchInstance: %v", err)
	}
	if _, err := c.Host(ctx); err != nil {
		t.Errorf("Host: %v", err)
	}
	if _, err := c.Doctor(ctx); err != nil {
		t.Errorf("Doctor: %v", err)
	}
	if im, err := c.ImportImage(ctx, "x", "", strings.NewReader("abc")); err != nil || im.Size != 3 {
		t.Errorf("ImportImage: %+v, %v", im, err)
	}

	op, err := c.Power(ctx, "web", client.Stop, client.PowerOptions{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	b.whenWaited(func() {
		b.put(api.Operation{Meta: api.Meta{ID: op.ID}, State: api.OperationFailed, Changes: 9, Error: api.Errorf(api.CodeTimeout, "it does not stop")})
	})
	if _, err := c.Wait(ctx, op, nil); !api.IsCode(err, api.CodeTimeout) {
		t.Errorf("Wait: %v", err)
	}

	for e, err := range c.Events(ctx, client.EventOptions{Since: "41", NoFollow: true}) {
		if err != nil || e.ID != 42 {
			t.Errorf("Events: %+v, %v", e, err)
		}
	}
	var lines []string
	for e, err := range c.Logs(ctx, "web", client.LogOptions{Tail: -1}) {
		lines = append(lines, fmt.Sprintf("%s %v", e.Data, err))
	}
	if got := strings.Join(lines, ";"); got != "oops <nil>; the log is damaged" {
		t.Errorf("Logs: %s", got)
	}

	var out, errs bytes.Buffer
	s, err := c.Exec(ctx, "web", api.ExecRequest{Command: []string{"sh", "-c", "cat; echo err >&2; exit 3"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := s.Run(ctx, client.Streams{Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errs})
	if err != nil || exit.Code != 3 || out.String() != "in" || errs.String() != "err\n" {
		t.Errorf("Exec: %+v, %v, %q, %q", exit, err, out.String(), errs.String())
	}
	if fi, err := c.Stat(ctx, "web", "/etc/passwd"); err != nil || fi.Name != "passwd" {
		t.Errorf("Stat: %+v, %v", fi, err)
	}
	r, err := c.Get(ctx, "web", "/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if p, err := io.ReadAll(r); err != nil || !bytes.Contains(p, []byte("root:")) {
		t.Errorf("Get: %d bytes, %v", len(p), err)
	}
}
