package image

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

// tool puts a program in mmdebstrap's place.
func tool(t testing.TB, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mmdebstrap"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestBuildRefusesWhatCouldBeAnOption(t *testing.T) {
	s := openStore(t)
	for _, req := range []api.ImageBuild{
		{Base: "debian"},
		{Base: "debian:"},
		{Base: "debian:--help"},
		{Base: "slackware:15"},
		{Base: "debian:../x"},
		{Base: "debian:bookworm", Include: []string{"--simulate"}},
		{Base: "debian:bookworm", Include: []string{"a b"}},
		{Base: "debian:bookworm", Include: []string{"a,b"}},
		{Base: "debian:bookworm", Mirror: "deb http://x y"},
		{Base: "debian:bookworm", Mirror: "/etc/passwd"},
		{Base: "debian:bookworm", Name: "base"},
	} {
		_, err := s.Build(t.Context(), req, nil)
		wantError(t, err, api.CodeInvalid)
	}
}

func TestBuildSaysWhatIsMissing(t *testing.T) {
	s := openStore(t)
	t.Setenv("PATH", t.TempDir())
	_, err := s.Build(t.Context(), api.ImageBuild{Base: "debian:bookworm"}, nil)
	wantError(t, err, api.CodeUnsupported, "mmdebstrap", "apt-get install mmdebstrap")
}

func TestBuildPassesOnWhatTheToolSays(t *testing.T) {
	s := openStore(t)
	tool(t, `echo "I: looking" >&2; echo "E: no such release" >&2; exit 25`)
	var steps []string
	_, err := s.Build(t.Context(), api.ImageBuild{Base: "debian:nosuch"}, func(step string, _, _ int64) { steps = append(steps, step) })
	wantError(t, err, api.CodeUnavailable, "E: no such release")
	if d := cmp.Diff([]string{"looking"}, steps); d != "" {
		t.Error(d)
	}
	checkNothingHalf(t, s)
}

func TestBuildRefusesAHalfTree(t *testing.T) {
	s := openStore(t)
	dir := t.TempDir()
	whole := imagetest.Tar(t, file{Name: "a", Body: noise(100_000, 1)})
	if err := os.WriteFile(dir+"/half", whole[:50_000], 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "cat "+dir+"/half; exit 0")
	_, err := s.Build(t.Context(), api.ImageBuild{Base: "debian:bookworm"}, nil)
	wantError(t, err, api.CodeCorrupt)
	if err := os.WriteFile(dir+"/half", whole, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "cat "+dir+"/half; echo 'E: late' >&2; exit 1")
	_, err = s.Build(t.Context(), api.ImageBuild{Base: "debian:bookworm"}, nil)
	wantError(t, err, api.CodeUnavailable, "late")
	checkNothingHalf(t, s)
}

func TestBuildOutlivesTheThreadsOfOthers(t *testing.T) {
	s := openStore(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/tar", imagetest.Tar(t, file{Name: "sbin/init"}), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "echo 'I: ready' >&2; until [ -e "+dir+"/go ]; do sleep 0.01; done; cat "+dir+"/tar")
	_, err := s.Build(t.Context(), api.ImageBuild{Base: "debian:bookworm"}, func(step string, _, _ int64) {
		if step != "ready" {
			return
		}
		// A goroutine that ends with its thread locked takes the thread along,
		// and any idle one may be given to it.
		var ended sync.WaitGroup
		for range 200 {
			ended.Go(runtime.LockOSThread)
		}
		ended.Wait()
		if err := os.WriteFile(dir+"/go", nil, 0o600); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBuildGivesTheToolItsArguments(t *testing.T) {
	s := openStore(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/tar", imagetest.Tar(t, file{Name: "sbin/init"}), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, `printf '%s\n' "$@" > `+dir+`/args; cat `+dir+`/tar`)
	img, err := s.Build(t.Context(), api.ImageBuild{Base: "debian:bookworm", System: true, Include: []string{"nginx"}, Mirror: "http://mirror.example/debian"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	args, err := os.ReadFile(dir + "/args")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"--mode=root", "--variant=minbase", "--format=tar", "--customize-hook=" + scrub,
		"--include=" + strings.Join(systemPackages, ",") + ",nginx", "bookworm", "-", "http://mirror.example/debian", "",
	}
	if d := cmp.Diff(want, strings.Split(string(args), "\n")); d != "" {
		t.Error(d)
	}
	if !img.System || img.Config.StopSignal != "SIGRTMIN+3" || img.Names[0] != "docker.io/library/debian:bookworm" {
		t.Errorf("%+v", img)
	}
}

// The real thing takes half a minute and a package mirror.
func TestBuildDebian(t *testing.T) {
	if os.Getenv("CLEAVE_TEST_BUILD") == "" {
		t.Skip("set CLEAVE_TEST_BUILD=1 to build a Debian from the host's package sources")
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skip("needs mmdebstrap")
	}
	s := openStore(t)
	img, err := s.Build(t.Context(), api.ImageBuild{Base: "debian:bookworm", Include: []string{"hello"}}, func(step string, _, _ int64) { t.Log(step) })
	if err != nil {
		t.Fatal(err)
	}
	root := imagetest.Mount(t, s.EROFS(img.Digest))
	for _, name := range []string{"bin/bash", "usr/bin/hello", "etc/apt/sources.list"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "etc/hostname")); err != nil || len(b) != 0 {
		t.Errorf("the host's name came along: %q, %v", b, err)
	}
	_, err = s.Build(t.Context(), api.ImageBuild{Base: "debian:nosuchrelease"}, nil)
	wantError(t, err, api.CodeUnavailable, "mmdebstrap")
	t.Log(err)
	checkNothingHalf(t, s)
}
