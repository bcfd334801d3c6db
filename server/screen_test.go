package server

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
)

// screened is a backend whose guests have a screen that echoes.
type screened struct {
	*fake
	opened chan net.Conn
	fail   error
}

func (s *screened) Screenshot(context.Context, string, string) ([]byte, error) {
	return []byte("\x89PNG"), s.fail
}

func (s *screened) VNC(context.Context, string, string) (net.Conn, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		_, _ = io.Copy(theirs, theirs)
	}()
	s.opened <- theirs
	return ours, nil
}

func TestScreensAreSeenAndUsed(t *testing.T) {
	b := &screened{fake: newFake(), opened: make(chan net.Conn, 8)}
	b.add("default", "web", 1)
	h := start(t, b)
	c, err := client.New(client.Options{Socket: h.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if png, err := c.Screenshot(t.Context(), "web"); err != nil || string(png) != "\x89PNG" {
		t.Errorf("screenshot: %q, %v", png, err)
	}
	conn, err := c.VNC(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	sent := strings.Repeat("RFB 003.008\n", 20000)
	go func() { _, _ = io.WriteString(conn, sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != sent {
		t.Errorf("what came back differs: %v", err)
	}
	<-b.opened // the one that was only asked whether it is there
	guest := <-b.opened
	guest.Close()
	if _, err := conn.Read(got); err == nil {
		t.Error("the viewer isn't told that the screen is gone")
	}
	conn.Close()

	b.fail = api.Errorf(api.CodeUnsupported, "it has no screen")
	if _, err := c.VNC(t.Context(), "web"); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("no screen: %v", err)
	}
	if _, err := c.Screenshot(t.Context(), "web"); !api.IsCode(err, api.CodeUnsupported) {
		t.Errorf("no screen: %v", err)
	}
}
