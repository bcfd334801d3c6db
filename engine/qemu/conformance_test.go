package qemu

import (
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
)

func TestConformance(t *testing.T) {
	opts := newOptions(t)
	e := open(t, opts)
	enginetest.Run(t, enginetest.Fixture{
		Engine:  e,
		Image:   engine.Image{Digest: "sha256:busybox", EROFS: shared.busybox},
		Volume:  func(t *testing.T) string { return t.TempDir() },
		Machine: &engine.Machine{Arch: "amd64", CPUs: 1, Memory: 256 * api.MiB, Kernel: boot(t)},
		Reopen: func(*testing.T) engine.Engine { // for the cases that follow, too
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			e = open(t, opts)
			return e
		},
	})
}
