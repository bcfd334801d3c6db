package seed

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"net"
	"net/mail"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/cleave-project/cleave/api"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxoa3Nka2poc2tkamhma3NqZGhma3NqZGhma3Nq me@here"

func config() Config {
	return Config{
		InstanceID: "abcdefghij", Hostname: "web-1", SSHKeys: []string{key + "\n"},
		NICs: []NIC{{
			Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 0xab}, MTU: 1400,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.83.0.5/24"), netip.MustParsePrefix("fd00::5/64")},
			Gateways:  []netip.Addr{netip.MustParseAddr("10.83.0.1"), netip.MustParseAddr("fd00::1")},
			DNS:       []netip.Addr{netip.MustParseAddr("10.83.0.1")}, Search: []string{"cleave"},
		}},
	}
}

// contents reads a seed back.
func contents(t *testing.T, c Config) map[string]string {
	t.Helper()
	var b bytes.Buffer
	if err := Build(&b, c); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("isoinfo"); err != nil {
		t.Skip("isoinfo is missing; install genisoimage")
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, name := range []string{"meta-data", "user-data", "network-config", "cleave-agent"} {
		out, err := exec.Command("isoinfo", "-J", "-i", path, "-x", "/"+name).Output()
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(out)
	}
	return files
}

func TestSeedSaysWhoTheGuestIs(t *testing.T) {
	files := contents(t, config())
	want := map[string]string{
		"meta-data": `instance-id: abcdefghij
local-hostname: web-1
public-keys:
  - ` + key + "\n",
		"network-config": `version: 2
ethernets:
  port0:
    match:
      macaddress: 02:00:00:00:00:ab
    set-name: eth0
    dhcp4: false
    dhcp6: false
    accept-ra: false
    addresses:
      - 10.83.0.5/24
      - fd00::5/64
    routes:
      - to: 0.0.0.0/0
        via: 10.83.0.1
      - to: ::/0
        via: fd00::1
    mtu: 1400
    nameservers:
      addresses:
        - 10.83.0.1
      search:
        - cleave
`,
		"user-data": "", "cleave-agent": "",
	}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Error(diff)
	}
}

// parts reads user data as cloud-init does.
func parts(t *testing.T, text string) map[string]string {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextPart()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(p)
		if err != nil {
			t.Fatal(err)
		}
		if p.Header.Get("Content-Transfer-Encoding") == "base64" {
			if b, err = base64.StdEncoding.DecodeString(strings.ReplaceAll(string(b), "\n", "")); err != nil {
				t.Fatal(err)
			}
		}
		all[p.Header.Get("Content-Type")] = string(b)
	}
}

func TestAgentComesBesideTheUsersData(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"", "#cloud-config\nusers: [default]\n# ümläut\n", "#!/bin/sh\necho --==cleave-abcdefghij==\n"} {
		c := config()
		c.Agent, c.UserData = agent, user
		files := contents(t, c)
		if files["cleave-agent"] != "program" {
			t.Errorf("the agent is %q", files["cleave-agent"])
		}
		want := map[string]string{"text/cloud-boothook": boothook}
		if user != "" {
			want[`text/plain; charset="utf-8"`] = user
		}
		if diff := cmp.Diff(want, parts(t, files["user-data"])); diff != "" {
			t.Error(diff)
		}
	}
	c := config()
	c.Agent, c.UserData = agent, "Content-Type: multipart/mixed; boundary=x\n\n--x\n\nhello\n--x--\n"
	if got := parts(t, contents(t, c)["user-data"])["message/rfc822"]; !strings.HasPrefix(got, c.UserData[:40]) {
		t.Errorf("a message within is %q", got)
	}
}

func TestBoothookIsAShellScript(t *testing.T) {
	if out, err := exec.Command("sh", "-n", "boothook.sh").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCheckRefuses(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"spec.hostname":                   func(c *Config) { c.Hostname = "a\nb: c" },
		"spec.machine.cloudInit.":         func(c *Config) { c.InstanceID = "a b" },
		"spec.machine.cloudInit.sshKeys":  func(c *Config) { c.SSHKeys = []string{key + "\n" + key} },
		"spec.machine.cloudInit.sshKeys ": func(c *Config) { c.SSHKeys = []string{"ssh-rsa " + strings.Fields(key)[1]} },
		"spec.machine.cloudInit.sshKeys.": func(c *Config) { c.SSHKeys = []string{"-----BEGIN OPENSSH PRIVATE KEY-----"} },
		"spec.machine.cloudInit.userData": func(c *Config) { c.UserData = "#cloud-config\na: b: c\n" },
		"spec.machine.cloudInit.userData ": func(c *Config) {
			c.UserData = strings.Repeat("x", maxText+1)
		},
		"spec.machine.cloudInit.networkConfig":  func(c *Config) { c.NetworkConfig = "version: 3" },
		"spec.machine.cloudInit.networkConfig ": func(c *Config) { c.NetworkConfig = "hello" },
	} {
		c := config()
		change(&c)
		err := Build(io.Discard, c)
		coded := api.AsError(err)
		if !api.IsCode(err, api.CodeInvalid) || coded.Field != strings.Trim(name, " ") && coded.Field+"." != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, ok := range []string{"version: 2\nethernets: {}", "network:\n  version: 1\n  config: [{type: physical, name: eth0}]", "network: {config: disabled}"} {
		c := config()
		c.NetworkConfig = ok
		if err := c.Check(); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
}

// FuzzConfig looks for text that comes back as something else.
func FuzzConfig(f *testing.F) {
	f.Add("web", key, "eth0")
	f.Fuzz(func(t *testing.T, host, key, nic string) {
		c := config()
		c.Hostname, c.SSHKeys, c.NICs[0].Name = host, []string{key}, nic
		if c.Check() != nil {
			return
		}
		meta, err := c.metaData()
		if err != nil {
			return
		}
		var back struct {
			Host string   `yaml:"local-hostname"`
			Keys []string `yaml:"public-keys"`
		}
		if err := yaml.Unmarshal([]byte(meta), &back); err != nil || back.Host != host || len(back.Keys) != 1 || back.Keys[0] != strings.TrimSpace(key) {
			t.Errorf("%q became %+v: %v", meta, back, err)
		}
		network, err := c.network()
		if err != nil {
			return
		}
		var net struct {
			Ethernets map[string]ethernet `yaml:"ethernets"`
		}
		if err := yaml.Unmarshal([]byte(network), &net); err != nil || net.Ethernets["port0"].Name != nic {
			t.Errorf("%q became %+v: %v", network, net, err)
		}
	})
}
