package arch

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// A module that is chosen is chosen for a reason, which docs/dependencies.md
// gives.
func TestEveryDirectDependencyHasAReason(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json", "../../go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	suffix := regexp.MustCompile(`/v[0-9]+$`)
	direct := 0
	for _, r := range mod.Require {
		if r.Indirect {
			continue
		}
		direct++
		// The second module of a row goes without its host.
		name := strings.TrimPrefix(suffix.ReplaceAllString(r.Path, ""), "github.com/")
		name = strings.TrimPrefix(name, "golang.org/")
		if etcd, ok := strings.CutPrefix(name, "go.etcd.io/etcd/"); ok {
			name = etcd // one row for its modules
		}
		if !strings.Contains(string(doc), name) {
			t.Errorf("docs/dependencies.md has no reason for %s", r.Path)
		}
	}
	if direct < 10 {
		t.Errorf("only %d direct requirements: run `go mod tidy`", direct)
	}
}
