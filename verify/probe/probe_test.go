package probe

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestMain lets the tests' program stand in for cleave-probe, as the
// questions execute themselves.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == "exit":
		code, _ := strconv.Atoi(os.Args[2])
		os.Exit(code)
	case len(os.Args) > 1 && os.Args[1] == "orphan":
		if Orphan() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) > 2 && os.Args[1] == "parent":
		born, _ := strconv.Atoi(os.Args[2])
		if Parent(born) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case len(os.Args) > 1 && os.Args[1] == "sleep":
		time.Sleep(time.Hour)
	case len(os.Args) > 1 && os.Args[1] == "eat-here":
		if EatHere(8) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestAnswersAreWhatLinuxSays(t *testing.T) {
	got, err := Ask(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]string{}
	for _, a := range got {
		answers[a.Name] = a.Text
	}
	if len(answers) != len(got) || len(got) < 75 {
		t.Errorf("%d questions have %d names", len(got), len(answers))
	}
	for name, want := range map[string]string{
		"a system call that doesn't exist":        "error ENOSYS",
		"reading to memory that can't be written": "error EFAULT",
		"eventfd adds up":                         "5",
		"epoll tells an edge once":                "1",
		"an orphan goes to another parent":        "yes",
		"exit status of a child":                  "7",
		"a replaced file keeps its readers":       "old, then new",
		"a hole is punched":                       `"x\x00\x00"`,
		"longest name":                            "error ENAMETOOLONG",
		"a blocked signal waits":                  "1",
		"real-time signals queue":                 "3",
		"a stopped child shows, and goes on":      "stopped continued",
		"a child that is killed":                  "killed",
		"monotonic time never goes back":          "yes",
		"TCP on loopback":                         "yes",
		"descriptors pass through a socket":       "through",
		"it knows this process's number":          "yes",
	} {
		if answers[name] != want {
			t.Errorf("%s: got %q, want %q", name, answers[name], want)
		}
	}
}

func TestQuestionsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	if _, err := Ask(dir); err != nil {
		t.Fatal(err)
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Errorf("%d files are left", len(es))
	}
}

func TestWorkIsMeasured(t *testing.T) {
	got, err := Measure(t.TempDir(), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(works) {
		t.Errorf("%d of %d kinds of work", len(got), len(works))
	}
	for _, f := range got {
		if f.Rate <= 0 || f.Unit == "" {
			t.Errorf("%+v", f)
		}
	}
}

func TestAFullDiskEndsFilling(t *testing.T) {
	dir := t.TempDir()
	if err := exec.Command("mount", "-t", "tmpfs", "-o", "size=3m", "probe", dir).Run(); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	got := Fill(dir, 10)
	if got.Amount != 3 || got.End != "error ENOSPC" {
		t.Errorf("got %+v", got)
	}
	if es, _ := os.ReadDir(dir); len(es) != 0 {
		t.Error("the file is left")
	}
}

func TestEatingIsCounted(t *testing.T) {
	if got := Eat(8); got.Amount != 8 || got.End != "nothing" {
		t.Errorf("got %+v", got)
	}
}

func TestAttemptsFindWhatIsThere(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if got := Find(secret); got.Amount != 0 {
		t.Errorf("what isn't there: got %+v", got)
	}
	if err := os.WriteFile(secret, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Find(secret); got.Amount == 0 {
		t.Errorf("what is there: got %+v", got)
	}
	if got := Reach("127.0.0.1:1"); got.Amount != 0 || got.End != "error ECONNREFUSED" {
		t.Errorf("nobody listens: got %+v", got)
	}
}
