package main

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestEveryFlagIsDocumented(t *testing.T) {
	man, err := os.ReadFile("../../docs/man/cleaved.8")
	if err != nil {
		t.Fatal(err)
	}
	configuration, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	command().Flags().VisitAll(func(f *pflag.Flag) {
		name := "--" + f.Name
		if !strings.Contains(string(man), `\-\-`+f.Name) {
			t.Errorf("docs/man/cleaved.8 doesn't mention %s", name)
		}
		if f.Name != "detach" && !strings.Contains(string(configuration), "`"+name+"`") {
			t.Errorf("docs/configuration.md doesn't mention %s", name)
		}
	})
}
