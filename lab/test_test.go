package lab

import (
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
