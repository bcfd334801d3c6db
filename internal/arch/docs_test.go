package arch

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// row is a line of the table in docs/dependencies.md; the first cell names
// modules.
var row = regexp.MustCompile("(?m)^\\| ((?:`[^`]+`(?:, )?)+) \\|")

func TestDependenciesAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(b), -1) {
		for name := range strings.SplitSeq(m[1], ", ") {
			documented[strings.Trim(name, "`")] = true
		}
	}
	used := usedModules(t)
	for m := range used {
		if !documented[m] {
			t.Errorf("%s is imported, and docs/dependencies.md doesn't say what it saves", m)
		}
	}
	for m := range documented {
		if !used[m] {
			t.Errorf("docs/dependencies.md has %s, which nothing imports", m)
		}
	}
}

// usedModules are the modules that packages of ours, or their tests, import.
func usedModules(t *testing.T) map[string]bool {
	t.Helper()
	imported := map[string]bool{}
	for _, p := range packages(t) {
		for _, imp := range append(append(p.Imports, p.TestImports...), p.XTestImports...) {
			imported[imp] = true
		}
	}
	cmd := exec.Command("go", "list", "-deps", "-test", "-json=ImportPath,Module", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	used := map[string]bool{}
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p struct {
			ImportPath string
			Module     *struct{ Path string }
		}
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		if imported[p.ImportPath] && p.Module != nil && p.Module.Path+"/" != module {
			used[p.Module.Path] = true
		}
	}
	return used
}

// link is a relative link or a picture in Markdown, without its anchor.
var link = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)

func TestLinksOfTheDocumentationLeadSomewhere(t *testing.T) {
	files := []string{"../../README.md", "../../CHANGELOG.md"}
	for _, pattern := range []string{"../../docs/*.md", "../../docs/*/*.md"} {
		more, err := filepath.Glob(pattern)
		if err != nil || len(more) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(more), err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s, which isn't there", filepath.Base(file), m[1])
			}
		}
	}
}
