package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dockerConfig makes text the Docker configuration of who calls.
func dockerConfig(t *testing.T, text string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

func TestPullSendsTheCallersCredentials(t *testing.T) {
	const config = `{"auths":{"reg.example":{"auth":"bWU6c2VjcmV0"},"https://index.docker.io/v1/":{"identitytoken":"refresh"}}}`
	for name, c := range map[string]struct {
		config, stdin string
		args          []string
		want, note    string
	}{
		"from the file": {config, "", []string{"reg.example/app:1"}, `"auth":{"username":"me","password":"secret"}`, ""},
		"Docker Hub":    {config, "", []string{"debian"}, `"auth":{"identityToken":"refresh"}`, ""},
		"given":         {config, "other\n", []string{"--user", "you", "--password-stdin", "reg.example/app:1"}, `"auth":{"username":"you","password":"other"}`, ""},
		"token given":   {config, "bearer\n", []string{"--password-stdin", "reg.example/app:1"}, `"auth":{"token":"bearer"}`, ""},
		"none for it":   {config, "", []string{"else.example/app:1"}, "", ""},
		"no name":       {config, "", []string{"Not/A/Name"}, "", ""},
		"broken file":   {"nonsense", "", []string{"reg.example/app:1"}, "", "note: read the Docker configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			dockerConfig(t, c.config)
			status, _, stderr := f.cleave(c.stdin, append([]string{"image", "pull"}, c.args...)...)
			if status != 0 || !strings.HasPrefix(stderr, c.note) || c.note == "" && stderr != "" {
				t.Fatalf("status %d, stderr %q", status, stderr)
			}
			sent := f.took()[0]
			if !strings.HasPrefix(sent, "POST /images/pull ") || !strings.Contains(sent, c.want) || c.want == "" && strings.Contains(sent, `"auth"`) {
				t.Errorf("sent %s, want %s", sent, c.want)
			}
		})
	}
}

func TestPullTakesNoPasswordFromTheCommandLine(t *testing.T) {
	f := newFake(t)
	if status, _, stderr := f.cleave("", "image", "pull", "--user", "me", "x"); status != exitUsage || !strings.Contains(stderr, "--password-stdin") {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}

func TestImportSaysWhatTheDaemonDoesOnceItHasEverything(t *testing.T) {
	f := newFake(t)
	told := make(chan struct{})
	f.hold = func() { <-told }
	f.seen = func(errs string) {
		if strings.HasSuffix(errs, "import -: making the image\n") {
			close(told)
		}
	}
	status, out, errs := f.cleave("an archive", "image", "import", "-", "mine")
	if status != 0 || out != "mine\nsha256:new\n" || errs != "import -: making the image\n" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
}
