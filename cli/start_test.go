package cli

import (
	"fmt"
	"io"
	"os"
	"testing"
)

func BenchmarkBuildingTheCommands(b *testing.B) {
	for b.Loop() {
		newRoot(newApp(os.Stdin, io.Discard, io.Discard), nil)
	}
}

// BenchmarkListOfThousand is the client's share of listing 1,000 guests.
func BenchmarkListOfThousand(b *testing.B) {
	f := newFake(b)
	for i := range 1000 {
		in := guests()[0]
		in.Name = fmt.Sprintf("guest-%d", i)
		f.instances = append(f.instances, in)
	}
	b.ResetTimer()
	for b.Loop() {
		f.cleave("", "list")
	}
}
