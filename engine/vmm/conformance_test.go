package vmm

import (
	"testing"

	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestConformance(t *testing.T) {
	e, opts := newEngineWith(t)
	enginetest.Run(t, enginetest.Fixture{
		Engine: e, Image: image(), Machine: hardware(),
		Volume: func(t *testing.T) string { return t.TempDir() },
		Reopen: func(*testing.T) engine.Engine { // for the cases that follow, too
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			e = open(t, opts)
			return e
		},
	})
}
