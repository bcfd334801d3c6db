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
		t.Errorf("docs/cli.md is out of date; run: go run ./internal/gendocs cli docs/cli.md\n%s", diff)
	}
}

func TestEveryCommandHasAManualPage(t *testing.T) {
	dir := t.TempDir()
	if err := pages(dir, "../../"+daemonPage); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"man1/cleave.1", "man1/cleave-launch.1", "man1/cleave-image-pull.1", "man1/cleave-completion.1", "man8/cleaved.8"} {
		b, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !strings.Contains(string(b), ".TH") {
			t.Errorf("%s: %v", page, err)
		}
	}
}
