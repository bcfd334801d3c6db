package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/google/go-cmp/cmp"
)

func kernels() []api.Kernel {
	return []api.Kernel{
		{Name: "6.1.0-9-cloud-amd64", Kind: api.KindVM, Arch: "amd64", Version: "6.1.0-9-cloud-amd64", Default: true, Source: "package linux-image-6.1.0-9-cloud-amd64 6.1.1-1", Created: epoch.Add(-2 * time.Hour), Size: 102 * api.MiB, UsedBy: []string{"default/web", "default/db"}},
		{Name: "uml-6.1.176", Kind: api.KindPVM, Arch: "amd64", Version: "6.1.176", Source: "an upload", Created: epoch, Size: 113 * api.MiB},
	}
}

func TestKernelsForPeople(t *testing.T) {
	f := newFake(t)
	f.kernels = kernels()
	for name, args := range map[string][]string{
		"kernel-list.txt": {"kernel", "ls"},
		"kernel-wide.csv": {"kernel", "list", "-o", "csv"},
		"kernel-show.txt": {"kernel", "info", "6.1.0-9-cloud-amd64"},
	} {
		status, out, errs := f.cleave("", args...)
		if status != 0 {
			t.Errorf("%v: %d %s", args, status, errs)
		}
		golden(t, name, out)
	}
}

func TestKernelCommandsSendWhatTheyMean(t *testing.T) {
	dir := t.TempDir()
	deb := filepath.Join(dir, "kernel.deb")
	if err := os.WriteFile(deb, []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"fetch", "debian"}, `POST /kernels/fetch {"distribution":"debian"}`},
		{[]string{"fetch", "debian", "--kind", "pvm", "--default"}, `POST /kernels/fetch {"distribution":"debian","kind":"pvm","default":true}`},
		{[]string{"fetch", "debian", "--arch", "arm64"}, `POST /kernels/fetch {"distribution":"debian","arch":"arm64"}`},
		{[]string{"add", "kernel.deb"}, `POST /kernels/import bytes`},
		{[]string{"add", deb, "--name", "mine", "--kind", "vm", "--default"}, `POST /kernels/import?default=true&kind=vm&name=mine bytes`},
		{[]string{"add", "kernel.deb", "--modules", "lib"}, `POST /kernels {"image":"` + deb + `","modules":"` + dir + `/lib"}`},
		{[]string{"add", "host"}, `POST /kernels {"image":"host"}`},
		{[]string{"default", "uml-6.1.176"}, `POST /kernels/uml-6.1.176/default`},
		{[]string{"rm", "uml-6.1.176"}, `DELETE /kernels/uml-6.1.176`},
	} {
		f := newFake(t)
		f.kernels = kernels()
		status, _, errs := f.cleave("", append([]string{"kernel"}, c.args...)...)
		if status != 0 {
			t.Errorf("%v: %d %s", c.args, status, errs)
			continue
		}
		if got := f.took()[0]; got != c.want {
			t.Errorf("%v: %s, want %s", c.args, got, c.want)
		}
	}
}

func TestKernelCommandsRefuseBeforeTheyAsk(t *testing.T) {
	f := newFake(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"fetch", "plan9"}, "plan9"},
		{[]string{"fetch", "debian", "--kind", "container"}, "container"},
		{[]string{"fetch", "debian", "--arch", "mips"}, "mips"},
		{[]string{"fetch"}, "DISTRIBUTION"},
		{[]string{"add", "/nonexistent/kernel.deb"}, "no such file"},
		{[]string{"add", "host", "--modules", "/lib/modules"}, "known"},
		{[]string{"add", "x", "--name", "../x"}, "valid name"},
	} {
		if status, _, errs := f.cleave("", append([]string{"kernel"}, c.args...)...); status == 0 || !strings.Contains(errs, c.want) {
			t.Errorf("%v: %d %s", c.args, status, errs)
		}
	}
	if sent := f.took(); len(sent) > 0 {
		t.Errorf("sent %v", sent)
	}
}

func TestKernelNamesComplete(t *testing.T) {
	f := newFake(t)
	f.kernels = kernels()
	for _, args := range [][]string{{"kernel", "default", "u"}, {"kernel", "delete", "u"}, {"kernel", "show", "u"}, {"launch", "base", "--kernel", "u"}} {
		_, out, _ := f.cleave("", append([]string{"__complete"}, args...)...)
		if d := cmp.Diff("uml-6.1.176", strings.Split(out, "\n")[0]); d != "" {
			t.Errorf("%v: %s", args, d)
		}
	}
}
