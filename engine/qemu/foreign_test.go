package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/engine"
	"github.com/cleave-project/cleave/engine/enginetest"
	"github.com/cleave-project/cleave/kernel"
)

// foreignKernels keeps a kernel of another architecture from one run of the
// tests to the next.
const foreignKernels = "/var/cache/cleave-test/kernels-arm64"

// program is what an image of another architecture holds: one that needs
// nothing else.
const program = `package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Println(runtime.GOARCH)
	os.Exit(4)
}
`

// buildFor builds a program of this module, or a file, for arm64.
func buildFor(t *testing.T, out, what string) {
	t.Helper()
	c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, what)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
	if b, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v: %s", what, err, b)
	}
}

func TestImageOfAnotherArchitectureBoots(t *testing.T) {
	e := newEngine(t)
	if _, err := e.mon.tools.find(t.Context(), archs[1]); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	root, agent, source := filepath.Join(dir, "root"), filepath.Join(dir, "agent"), filepath.Join(dir, "main.go")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(source, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	buildFor(t, agent, "github.com/cleave-project/cleave/cmd/cleave-agent")
	buildFor(t, filepath.Join(root, "bin/tell"), source)
	spec := newSpec(t)
	spec.Image = engine.Image{Digest: "sha256:foreign", EROFS: filepath.Join(dir, "image.erofs")}
	if out, err := exec.Command("mkfs.erofs", "--all-root", spec.Image.EROFS, root).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	kernels, err := kernel.Open(kernel.Options{Dir: foreignKernels, Agent: func(string) (string, error) { return agent, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kernels.Get(api.KindVM, "arm64", ""); err != nil {
		fetch := api.KernelFetch{Kind: api.KindVM, Distribution: "debian", Arch: "arm64"}
		if _, err := kernels.Fetch(t.Context(), fetch, func(string, int64, int64) {}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := kernels.Boot(t.Context(), api.KindVM, "arm64", "")
	if err != nil {
		t.Fatal(err)
	}
	spec.Proc = engine.Process{Args: []string{"/bin/tell"}}
	spec.Machine.Arch, spec.Machine.Memory = "arm64", 512*api.MiB
	spec.Machine.Kernel = engine.Kernel{Name: b.Name, Image: b.Image, Initrd: b.Initrd, Args: b.Args, Modules: b.Modules, Version: b.Version}
	enginetest.Start(t, e, spec)
	if st := enginetest.WaitExit(t, e, spec.ID); st != (api.ExitStatus{Code: 4, Reason: "exit"}) || enginetest.Log(t, e, spec.ID) != "arm64\n" {
		t.Errorf("it ended as %+v\n%s", st, enginetest.Log(t, e, spec.ID))
	}
}
