// Package seed makes the medium from which cloud-init in a guest learns who
// the guest is, and on which it finds our agent: data source NoCloud, an ISO
// 9660 image with the label cidata.
//
// It should be made anew before each start and stay attached: cloud-init
// looks at it at every boot, and takes what has the same instance id for what
// was set up already; the agent is renewed from it then.
package seed

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/iso9660"
)

// Config is what a guest is to be told.
type Config struct {
	// InstanceID must stay the same as long as the guest is the same:
	// cloud-init takes another one for a fresh clone and sets up all anew.
	InstanceID string
	Hostname   string
	UserData   string   // as cloud-init takes it; may be empty
	SSHKeys    []string // public keys for the system's default user
	// NetworkConfig replaces what is made of NICs.
	NetworkConfig string
	NICs          []NIC
	Agent         string // path of the agent to install; empty for none
}

// NIC is a port as the guest sets it up.
type NIC struct {
	Name      string
	MAC       net.HardwareAddr
	Addresses []netip.Prefix
	Gateways  []netip.Addr
	DNS       []netip.Addr
	Search    []string
	MTU       int
}

// maxText bounds what users may give.
const maxText = 1 << 20

var (
	// hostname is a name of labels (RFC 1123 §2.1).
	hostname = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	nicName  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
	id       = regexp.MustCompile(`^[A-Za-z0-9._-]{1,128}$`)
	// sshKey is a line of authorized_keys without options (sshd(8)).
	sshKey = regexp.MustCompile(`^((?:ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+) ([A-Za-z0-9+/]+={0,3})( [^\x00-\x1f\x7f]*)?$`)
)

// Check tells what of a configuration can't be used.
func (c *Config) Check() error {
	invalid := func(field, format string, args ...any) *api.Error {
		return api.Errorf(api.CodeInvalid, format, args...).WithField("spec.machine.cloudInit." + field)
	}
	switch {
	case !id.MatchString(c.InstanceID):
		return invalid("", "instance id %.200q: not of letters, digits and ._-", c.InstanceID)
	case len(c.Hostname) > 253 || !hostname.MatchString(c.Hostname):
		return api.Errorf(api.CodeInvalid, "host name %.300q: not a name of letters, digits and hyphens", c.Hostname).WithField("spec.hostname")
	case len(c.UserData) > maxText:
		return invalid("userData", "user data have %d bytes; at most %d are accepted", len(c.UserData), maxText)
	case len(c.NetworkConfig) > maxText:
		return invalid("networkConfig", "the network configuration has %d bytes; at most %d are accepted", len(c.NetworkConfig), maxText)
	}
	for _, n := range c.NICs {
		if !nicName.MatchString(n.Name) || len(n.MAC) != 6 {
			return api.Errorf(api.CodeInvalid, "port %.60q with MAC %q: not a name of an interface, or not six bytes", n.Name, n.MAC).WithField("spec.nics")
		}
	}
	for _, k := range c.SSHKeys {
		if err := checkKey(strings.TrimSpace(k)); err != nil {
			return invalid("sshKeys", "SSH key %.60q: %v", k, err).WithHint("give one line of a file like ~/.ssh/id_ed25519.pub")
		}
	}
	if firstLine(c.UserData) == "#cloud-config" {
		var doc map[string]any
		if err := yaml.Unmarshal([]byte(c.UserData), &doc); err != nil {
			return invalid("userData", "user data: %v", err).WithHint("after #cloud-config comes a YAML mapping")
		}
	}
	if c.NetworkConfig != "" {
		if err := checkNetwork(c.NetworkConfig); err != nil {
			return invalid("networkConfig", "network configuration: %v", err).
				WithHint("it is a YAML mapping with version: 1 or version: 2")
		}
	}
	return nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSpace(line)
}

// checkKey also looks into the key, which begins with its own type (RFC 4253
// §6.6).
func checkKey(k string) error {
	m := sshKey.FindStringSubmatch(k)
	if m == nil {
		return fmt.Errorf("not a public key")
	}
	b, err := base64.StdEncoding.DecodeString(m[2])
	if err != nil {
		return err
	}
	if len(b) < 4+len(m[1]) || string(b[4:4+len(m[1])]) != m[1] {
		return fmt.Errorf("the key is no %s", m[1])
	}
	return nil
}

func checkNetwork(text string) error {
	var doc struct {
		Version int `yaml:"version"`
		Network struct {
			Version int    `yaml:"version"`
			Config  string `yaml:"config"`
		} `yaml:"network"`
	}
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		// Of version 1, config is a list: look at the version alone.
		var loose struct {
			Version int `yaml:"version"`
			Network struct {
				Version int `yaml:"version"`
			} `yaml:"network"`
		}
		if yaml.Unmarshal([]byte(text), &loose) != nil {
			return err
		}
		doc.Version, doc.Network.Version = loose.Version, loose.Network.Version
	}
	if v := max(doc.Version, doc.Network.Version); v != 1 && v != 2 && doc.Network.Config != "disabled" {
		return fmt.Errorf("version %d isn't known", v)
	}
	return nil
}

// Build writes the medium.
func Build(w io.Writer, c Config) error {
	if err := c.Check(); err != nil {
		return err
	}
	meta, err := c.metaData()
	if err != nil {
		return err
	}
	network := c.NetworkConfig
	if network == "" {
		if network, err = c.network(); err != nil {
			return err
		}
	}
	user, err := c.userData()
	if err != nil {
		return err
	}
	files := []iso9660.File{text("meta-data", meta), text("user-data", user), text("network-config", network)}
	if c.Agent != "" {
		f, err := os.Open(c.Agent)
		if err != nil {
			return fmt.Errorf("cloud-init seed: %w", err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return fmt.Errorf("cloud-init seed: %w", err)
		}
		files = append(files, iso9660.File{Name: agentName, Size: st.Size(), Data: f})
	}
	if err := iso9660.Write(w, "cidata", files); err != nil {
		return fmt.Errorf("cloud-init seed: %w", err)
	}
	return nil
}

func text(name, content string) iso9660.File {
	return iso9660.File{Name: name, Size: int64(len(content)), Data: strings.NewReader(content)}
}

func (c *Config) metaData() (string, error) {
	keys := make([]string, len(c.SSHKeys))
	for i, k := range c.SSHKeys {
		keys[i] = strings.TrimSpace(k)
	}
	return marshal(struct {
		InstanceID string   `yaml:"instance-id"`
		Hostname   string   `yaml:"local-hostname"`
		Keys       []string `yaml:"public-keys,omitempty"`
	}{c.InstanceID, c.Hostname, keys})
}

func marshal(v any) (string, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return "", fmt.Errorf("cloud-init seed: %w", err)
	}
	return b.String(), nil
}
