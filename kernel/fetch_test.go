package kernel

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

// fakeApt puts tools into the search path that answer as apt's do. What they
// were asked is in the file log; the script below decides on the answer.
func fakeApt(t *testing.T, script string) (log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	body := fmt.Sprintf(`#!/bin/sh
own=$(grep -s 'APT::Architecture "' "$APT_CONFIG" | cut -d'"' -f2)
sources=$(grep -s '^Dir::Etc::sourcelist' "$APT_CONFIG" | cut -d'"' -f2)
while [ "$1" = -q ] || [ "$1" = -o ]; do case $1 in -o) shift 2 ;; *) shift ;; esac; done
echo "${0##*/} $* ${own:+arch=$own} ${sources:+$(cat $sources)}" >>%s
%s
`, log, script)
	for _, name := range []string{"apt-get", "apt-cache"} {
		if err := os.WriteFile(write(t, filepath.Join(dir, name), nil), []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, log, nil)
	if err := os.Chmod(log, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return log
}

// served is a script for fakeApt by which a package is to be had.
func served(deb string) string {
	return `case "$*" in
"depends --important linux-image-cloud-amd64") echo linux-image-cloud-amd64; echo "  Depends: linux-image-` + testRelease + `" ;;
"download --print-uris linux-image-` + testRelease + `") echo "'http://x/p.deb' linux-image-` + testRelease + `_1%3a2.0-1_amd64.deb 1000 SHA256:00" ;;
"download linux-image-` + testRelease + `=1:2.0-1") echo "dlstatus:1:40.5:Retrieving" >&3; echo junk >&3; echo "dlstatus:1:100:Retrieving" >&3; cp ` + deb + ` p.deb ;;
"update") ;;
*) echo "E: Unable to locate package $3" >&2; exit 100 ;;
esac`
}

// told collects what a fetch tells.
type told []string

func (l *told) hear(step string, done, total int64) {
	*l = append(*l, strings.TrimSpace(fmt.Sprintf("%s %d/%d", step, done, total)))
}

func onAmd64(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skipf("needs a host of amd64, as the packages of this test are; this is %s", runtime.GOARCH)
	}
}

func TestFetchTakesTheNewestPackageOnce(t *testing.T) {
	onAmd64(t)
	s := newStore(t)
	deb := write(t, filepath.Join(t.TempDir(), "kernel.deb"), kernelDeb(testRelease))
	log := fakeApt(t, served(deb))
	var l told
	k, err := s.Fetch(t.Context(), api.KernelFetch{Distribution: "debian"}, l.hear)
	if err != nil || k.Name != testRelease || !k.Default {
		t.Fatalf("%+v %v", k, err)
	}
	name := "linux-image-" + testRelease
	want := told{"downloading " + name + " 0/1000", "downloading " + name + " 405/1000", "downloading " + name + " 1000/1000", "unpacking " + name + " 0/0"}
	if d := cmp.Diff(want, l); d != "" {
		t.Error(d)
	}
	if err := os.WriteFile(log, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(t.Context(), api.KernelFetch{Distribution: "debian", Default: true}, l.hear); err != nil {
		t.Fatal(err)
	}
	if asked, _ := os.ReadFile(log); strings.Contains(string(asked), "download linux") {
		t.Errorf("it was downloaded again:\n%s", asked)
	}
	if !strings.Contains(l[len(l)-1], "there already") {
		t.Errorf("told %q", l)
	}
	if files, _ := os.ReadDir(s.Dir); len(files) != 2 {
		t.Errorf("left: %v", files)
	}
}

// The host's own sources may be stale, or not have it at all.
func TestFetchTriesOtherSources(t *testing.T) {
	onAmd64(t)
	deb := write(t, filepath.Join(t.TempDir(), "kernel.deb"), kernelDeb(testRelease))
	s := newStore(t)
	log := fakeApt(t, `[ -n "$own" ] || { echo "E: Failed to fetch http://x 404  Not Found" >&2; exit 100; }
`+served(deb))
	var l told
	if _, err := s.Fetch(t.Context(), api.KernelFetch{Distribution: "debian"}, l.hear); err != nil {
		t.Fatal(err)
	}
	if asked, _ := os.ReadFile(log); !strings.Contains(string(asked), "apt-get update arch=amd64") {
		t.Errorf("asked:\n%s", asked)
	}
	if l[0] != "fetching package lists 0/0" {
		t.Errorf("told %q", l)
	}
	if !exists(debianKeyring) {
		t.Skipf("needs %s for Debian's own sources (install debian-archive-keyring)", debianKeyring)
	}
	s = newStore(t)
	log = fakeApt(t, `case "$*" in indextargets*) echo "http://mirror.example/debian Debian"; exit ;; esac
[ -n "$sources" ] || { echo "E: Unable to locate package x" >&2; exit 100; }
`+served(deb))
	if _, err := s.Fetch(t.Context(), api.KernelFetch{Distribution: "debian"}, l.hear); err != nil {
		t.Fatal(err)
	}
	if asked, _ := os.ReadFile(log); !strings.Contains(string(asked), "signed-by="+debianKeyring+"] http://mirror.example/debian trixie main") {
		t.Errorf("asked:\n%s", asked)
	}
}

func TestFetchSaysWhatFailedAndTheWayOut(t *testing.T) {
	onAmd64(t)
	for name, c := range map[string]struct {
		script string
		in     api.KernelFetch
		code   api.Code
		want   string
	}{
		"no network":      {`echo "E: Failed to fetch http://deb/x Could not resolve 'deb'" >&2; exit 100`, api.KernelFetch{}, api.CodeUnavailable, "Could not resolve 'deb'"},
		"no such package": {`echo "E: Unable to locate package x" >&2; exit 100`, api.KernelFetch{Arch: "riscv64"}, api.CodeNotFound, "linux-image-riscv64"},
		"not Debian's":    {`exit 0`, api.KernelFetch{Distribution: "plan9"}, api.CodeInvalid, "plan9"},
		"uml elsewhere":   {`exit 0`, api.KernelFetch{Kind: api.KindPVM, Arch: "arm64"}, api.CodeUnsupported, "--kind vm"},
	} {
		s := newStore(t)
		fakeApt(t, c.script)
		if c.in.Distribution == "" {
			c.in.Distribution = "debian"
		}
		_, err := s.Fetch(t.Context(), c.in, func(string, int64, int64) {})
		if !api.IsCode(err, c.code) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v (%s)", name, err, api.AsError(err).Code)
		}
		if c.code == api.CodeUnavailable && !strings.Contains(err.Error(), "cleave kernel add FILE.deb") {
			t.Errorf("%s: no way out: %v", name, err)
		}
		if files, _ := os.ReadDir(s.Dir); len(files) > 0 {
			t.Errorf("%s: left %v", name, files)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := newStore(t).Fetch(t.Context(), api.KernelFetch{Distribution: "debian"}, nil); !api.IsCode(err, api.CodeUnsupported) || !strings.Contains(err.Error(), "apt-get") {
		t.Errorf("without apt: %v", err)
	}
}

// A package that was damaged on the way is no reason to try other sources.
func TestFetchRefusesABadPackage(t *testing.T) {
	onAmd64(t)
	s := newStore(t)
	whole := kernelDeb(testRelease)
	log := fakeApt(t, served(write(t, filepath.Join(t.TempDir(), "kernel.deb"), whole[:len(whole)/2])))
	if _, err := s.Fetch(t.Context(), api.KernelFetch{Distribution: "debian"}, func(string, int64, int64) {}); !api.IsCode(err, api.CodeInvalid) {
		t.Error(err)
	}
	if asked, _ := os.ReadFile(log); strings.Contains(string(asked), "update") {
		t.Errorf("asked:\n%s", asked)
	}
}

func TestFetchEndsWhenCancelled(t *testing.T) {
	onAmd64(t)
	s := newStore(t)
	// The tool and what it started hold the status pipe.
	log := fakeApt(t, `sleep 1000 & sleep 1000`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Fetch(ctx, api.KernelFetch{Distribution: "debian"}, func(string, int64, int64) {})
		ended <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if asked, _ := os.ReadFile(log); len(asked) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("apt was never asked")
		}
	}
	cancel()
	select {
	case err := <-ended:
		if err == nil || ctx.Err() == nil {
			t.Errorf("%v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	if files, _ := os.ReadDir(s.Dir); len(files) > 0 {
		t.Errorf("left: %v", files)
	}
}

// debian fetches a kernel by the system's real tools, or skips where there is
// no network.
func debian(t *testing.T, s *Store, in api.KernelFetch) *api.Kernel {
	t.Helper()
	if raced {
		t.Skip("unpacking takes minutes under the race detector: run it without -race")
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skipf("needs apt: %v", err)
	}
	in.Distribution = "debian"
	k, err := s.Fetch(t.Context(), in, func(string, int64, int64) {})
	if api.IsCode(err, api.CodeUnavailable) {
		t.Skipf("needs a mirror of Debian: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestForeignKernelIsFetchedWithoutTouchingTheHost(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: downloads 21 MB")
	}
	foreign := func() string {
		out, err := exec.Command("dpkg", "--print-foreign-architectures").Output()
		if err != nil {
			t.Skipf("needs dpkg: %v", err)
		}
		return string(out)
	}
	before := foreign()
	s := newStore(t)
	k := debian(t, s, api.KernelFetch{Arch: "arm64"})
	if k.Arch != "arm64" || k.Kind != api.KindVM || !strings.HasSuffix(k.Version, "-arm64") {
		t.Errorf("%+v", k)
	}
	if after := foreign(); after != before {
		t.Errorf("the host's architectures became %q", after)
	}
	if _, err := s.Boot(t.Context(), api.KindVM, "arm64", ""); err != nil {
		t.Errorf("its initramfs: %v", err)
	}
}
