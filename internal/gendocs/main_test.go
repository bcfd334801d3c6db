package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheReferenceIsCurrent(t *testing.T) {
	have, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(have), string(reference())); diff != "" {
		t.Errorf("docs/cli.md is out of date; run: go run ./internal/gendocs docs/cli.md\n%s", diff)
	}
}

func TestEveryCommandHasAManualPage(t *testing.T) {
	dir := t.TempDir()
	if err := generate(true, dir); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"cleave", "cleave-launch", "cleave-image-pull", "cleave-completion"} {
		b, err := os.ReadFile(filepath.Join(dir, page+".1"))
		if err != nil || !strings.Contains(string(b), ".TH") {
			t.Errorf("%s: %v", page, err)
		}
	}
}
