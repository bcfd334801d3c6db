package arch

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cleave-project/cleave/"

// order lists the packages from the top down, as in docs/architecture.md §4.
// A package imports only what stands below it, and its own sub-packages.
var order = []string{
	"e2e", "cmd", "internal/bench", "internal/gendocs", "lab",
	"cli", "verify", "client",
	"daemon", "server", "control",
	"engine", "vmm", "keeper", "agent",
	"kernel", "image", "storage", "backup", "network", "store",
	"api", "internal",
}

type pkg struct {
	ImportPath, Doc, Name              string
	Imports, TestImports, XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Name,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	if len(list) < 20 {
		t.Fatalf("only %d packages found", len(list))
	}
	return list
}

// rank is the place of a package in order, -1 if it has none. The longest
// entry that is the package or a parent of it counts.
func rank(path string) int {
	best, length := -1, 0
	for i, o := range order {
		if (path == o || strings.HasPrefix(path, o+"/")) && len(o) > length {
			best, length = i, len(o)
		}
	}
	return best
}

func TestArrowsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		from := strings.TrimPrefix(p.ImportPath, module)
		if rank(from) < 0 {
			t.Errorf("%s has no place in docs/architecture.md §4 and in order above", from)
			continue
		}
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module)
			if ours && rank(to) < rank(from) {
				t.Errorf("%s imports %s, which stands above it", from, to)
			}
		}
	}
}

func TestEveryPackageSaysItsContract(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.Doc) < 20 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// TestSmallProcessesLinkNothingLarge holds the processes whose size or start
// time is a promise to what they may link.
func TestSmallProcessesLinkNothingLarge(t *testing.T) {
	for _, c := range []struct {
		cmd    string
		refuse []string
	}{
		{"cmd/cleave-keeper", []string{"net/http", "go.etcd.io", "encoding/xml", "github.com/prometheus"}},
		{"cmd/cleave-agent", []string{"net/http", "go.etcd.io", "github.com/prometheus", "github.com/vishvananda"}},
		{"cmd/cleave", []string{"go.etcd.io", "github.com/danielgtaylor", "github.com/prometheus", module + "control", module + "server"}},
	} {
		cmd := exec.Command("go", "list", "-deps", "./"+c.cmd)
		cmd.Dir = "../.."
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%s: %v", c.cmd, err)
			continue
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if slices.ContainsFunc(c.refuse, func(r string) bool { return dep == r || strings.HasPrefix(dep, r+"/") }) {
				t.Errorf("%s links %s", c.cmd, dep)
			}
		}
	}
}
