package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOnlyTopTestsAreCounted(t *testing.T) {
	var got Results
	for _, line := range []string{
		"=== RUN   TestA\n", "    --- PASS: TestA/sub (0.00s)\n", "--- PASS: TestA (0.00s)\n", "--- SKIP: TestB (0.00s)\n",
		"--- FAIL: TestC (0.00s)\n", "--- PASS: TestD (0.00s)\n", "PASS\n", "",
	} {
		got.count(line)
	}
	if diff := cmp.Diff(Results{Passed: 2, Skipped: 1, Failed: 1}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatKilledTestsLeftIsRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	dirs := map[string]bool{"left": false, "used": true}
	for name := range dirs {
		dir := filepath.Join(os.TempDir(), testPrefix+name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		f, err := lockDir(dir, os.O_CREATE)
		if err != nil {
			t.Fatal(err)
		}
		if name == "used" {
			t.Cleanup(func() { f.Close() })
			continue
		}
		f.Close()
	}
	if _, err := testDir(); err != nil {
		t.Fatal(err)
	}
	for name, want := range dirs {
		if _, err := os.Stat(filepath.Join(os.TempDir(), testPrefix+name)); (err == nil) != want {
			t.Errorf("%s is there: %v", name, err == nil)
		}
	}
}

func TestWrongHostsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"name": func(s *Spec) { s.Name = "../x" }, "no name": func(s *Spec) { s.Name = "" }, "processors": func(s *Spec) { s.CPUs = 0 },
		"memory": func(s *Spec) { s.Memory = 1 << 20 }, "disk": func(s *Spec) { s.Disk = 1<<30 + 1 },
	} {
		s := DefaultSpec("h1")
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		if change(&s); s.check() == nil {
			t.Errorf("a wrong %s was taken", name)
		}
	}
}

func TestFilesOfAHostHaveDecentNames(t *testing.T) {
	to := filepath.Join(t.TempDir(), "files")
	for _, files := range []map[string]string{{"../x": "/etc/hostname"}, {"/x": "/etc/hostname"}, {"a": "/etc/hostname", "a/b": "/etc/hostname"}, {"x": "/no/such/file"}} {
		if writeFiles(to, files) == nil {
			t.Errorf("%v was taken", files)
		}
	}
}
