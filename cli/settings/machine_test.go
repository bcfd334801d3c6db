package settings

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/cleave-project/cleave/api"
)

func TestMachineFlagsReadFilesAndKeys(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keys := file("keys.pub", "# mine\nssh-ed25519 AAAA me\n\nssh-rsa BBBB you\n")
	iso := file("x.iso", "")
	var p Patch
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	InstanceFlags(fs, &p)
	p.Dir = dir
	if err := fs.Parse([]string{
		"--boot", "uefi", "--ssh-key", keys, "--ssh-key", "ssh-ed25519 CCCC", "--user-data", file("user", "#cloud-config\n"),
		"--iso", "x.iso", "--secure-boot", "--boot-order", "cdrom,disk",
	}); err != nil {
		t.Fatal(err)
	}
	var got api.Instance
	if err := p.Into(&got); err != nil {
		t.Fatal(err)
	}
	want := api.Machine{
		Firmware: "uefi", SecureBoot: true, ISO: iso, BootOrder: []string{"cdrom", "disk"},
		CloudInit: &api.CloudInit{UserData: "#cloud-config\n", SSHKeys: []string{"ssh-ed25519 AAAA me", "ssh-rsa BBBB you", "ssh-ed25519 CCCC"}},
	}
	if d := cmp.Diff(want, got.Spec.Machine); d != "" {
		t.Error(d)
	}
}

func TestAMediumIsAFileOrAnImage(t *testing.T) {
	for text, want := range map[string]string{"installer.iso": "installer.iso", "/a/b.iso": "/a/b.iso", "./b.iso": "/dir/b.iso", "": ""} {
		got, err := medium(&Patch{Dir: "/dir"}, text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}
