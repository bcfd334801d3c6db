package storage

import (
	"context"
	"errors"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestWhoIsInAloneWaitsForAllCalls(t *testing.T) {
	g := NewGate("fast")
	leave, err := g.EnterVolume(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	alone := make(chan bool)
	go func() {
		leave, err := g.EnterAlone()
		if err != nil {
			t.Error(err)
		} else {
			defer leave()
		}
		alone <- ended // the race detector watches it as well
	}()
	if g.mu.TryLock() {
		t.Fatal("nothing keeps another from being alone")
	}
	ended = true
	leave()
	if !<-alone {
		t.Error("it did not wait")
	}
}

func TestNoCallEntersAShutGate(t *testing.T) {
	g := NewGate("fast")
	leave, err := g.EnterAlone()
	if err != nil {
		t.Fatal(err)
	}
	if !g.Shut() || g.Shut() {
		t.Error("a gate is shut once")
	}
	leave()
	for name, enter := range map[string]func() (func(), error){
		"a call":           g.Enter,
		"a volume's call":  func() (func(), error) { return g.EnterVolume(t.Context(), "a") },
		"who wants it all": g.EnterAlone,
	} {
		if _, err := enter(); !api.IsCode(err, api.CodeUnavailable) {
			t.Errorf("%s: got %v, want an error of code unavailable", name, err)
		}
	}
}

func TestCallsThatCantBeMeantEnterNothing(t *testing.T) {
	g := NewGate("fast")
	if _, err := g.EnterVolume(t.Context(), "../x"); !api.IsCode(err, api.CodeInvalid) {
		t.Errorf("bad id: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.EnterVolume(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: got %v", err)
	}
	if !g.mu.TryLock() {
		t.Error("something is left in")
	}
}
