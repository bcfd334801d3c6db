package dir

import (
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/storage/storagetest"
)

func TestMain(m *testing.M) { storagetest.Main(m, Open) }

func TestPoolOfDisks(t *testing.T) {
	storagetest.Run(t, storagetest.Target{Open: Open})
}

func BenchmarkCreateDelete(b *testing.B) {
	storagetest.BenchmarkCreateDelete(b, storagetest.Target{Open: Open}, 64*api.MiB, 10, 1000)
}
