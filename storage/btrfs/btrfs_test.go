package btrfs

import (
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/storagetest"
)

var target = storagetest.Target{Open: Open, Shrinks: true, GrowsInUse: true}

func TestMain(m *testing.M) { storagetest.Main(m, Open) }

func TestLoopFilePool(t *testing.T) { storagetest.Run(t, target) }

func BenchmarkCreateDelete(b *testing.B) {
	storagetest.BenchmarkCreateDelete(b, target, api.GiB, 10, 1000)
}
