package cli

import (
	"io"
	"os"
	"testing"
)

func BenchmarkBuildingTheCommands(b *testing.B) {
	for b.Loop() {
		newRoot(newApp(os.Stdin, io.Discard, io.Discard), nil)
	}
}
