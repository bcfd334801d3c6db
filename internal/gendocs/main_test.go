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

func TestPictureHoldsTextAndNoEscapes(t *testing.T) {
	svg := string(picture([]byte("# echo '<b>'\n\x1b[1mNAME\x1b[0m  \x1b[32mrunning\x1b[39m\n# \n\n")))
	for _, want := range []string{"echo &#39;&lt;b&gt;&#39;", ">NAME</tspan>", `fill="#7ee787">running</tspan>`} {
		if !strings.Contains(svg, want) {
			t.Errorf("no %s in %s", want, svg)
		}
	}
	if strings.Contains(svg, "\x1b") {
		t.Errorf("an escape sequence is left: %q", svg)
	}
}
