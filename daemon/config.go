package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"sigs.k8s.io/yaml"

	"github.com/cleave-project/cleave/api"
)

// Paths of the default daemon.
const (
	DefaultConfig = "/etc/cleave/cleaved.yaml"
	DefaultData   = "/var/lib/cleave"
	DefaultRun    = "/run/cleave"
)

// Config is the daemon's configuration file, in YAML; every field is a flag
// too, which wins. docs/configuration.md describes it for users.
type Config struct {
	Data     string `json:"data"`     // state: records, images, pools
	Run      string `json:"run"`      // sockets, mount points, pid files
	Group    string `json:"group"`    // members may use the unix socket, beside root
	Listen   string `json:"listen"`   // host:port of the API over TCP; none if empty
	TLSCert  string `json:"tlsCert"`  // PEM files; needed off loopback
	TLSKey   string `json:"tlsKey"`   //
	Libexec  string `json:"libexec"`  // where cleave-keeper, cleave-agent and busybox are
	LogLevel string `json:"logLevel"` // debug, info, warn, error
	// UIDBase is the first host id given to guests; 4096 times 65536 ids
	// follow. Chosen by the data directory if 0.
	UIDBase uint32 `json:"uidBase"`
}

// Load reads a configuration file. A missing one is an error only when it
// was asked for by name.
func Load(path string, asked bool) (Config, error) {
	c := Config{Data: DefaultData, Run: DefaultRun, Group: "cleave", LogLevel: "info"}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !asked {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("configuration: %w", err)
	}
	if err := yaml.UnmarshalStrict(b, &c); err != nil {
		return c, api.Errorf(api.CodeInvalid, "configuration %s: %w", path, err).WithHint("docs/configuration.md lists the settings")
	}
	return c, nil
}

// complete makes paths absolute and fills in what follows from others.
func (c *Config) complete() error {
	for _, p := range []*string{&c.Data, &c.Run, &c.Libexec, &c.TLSCert, &c.TLSKey} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	if c.Data == "" || c.Run == "" {
		return api.Errorf(api.CodeInvalid, "the data and the run directory must be named").WithHint("give --data and --run, or leave both out")
	}
	// A unix socket's path has at most 107 bytes (unix(7)); the longest is
	// that of an agent.
	if longest := filepath.Join(c.Run, "instances", "0123456789", "agent.sock"); len(longest) > 107 {
		return api.Errorf(api.CodeInvalid, "the run directory %s is too long for the sockets in it", c.Run).WithHint("give a --run of at most %d characters", 107-len(longest)+len(c.Run))
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return api.Errorf(api.CodeInvalid, "TLS needs both a certificate and a key").WithHint("give --tls-cert and --tls-key")
	}
	if c.UIDBase == 0 {
		c.UIDBase = uidBase(c.scope())
	}
	return nil
}

// scope tells daemons on one host apart in the names of kernel objects.
func (c *Config) scope() string {
	if c.Data == DefaultData {
		return ""
	}
	h := sha256.Sum256([]byte(c.Data))
	return hex.EncodeToString(h[:3])
}

// uidBase chooses the host ids of a daemon's guests: above those that
// systemd-nspawn takes (to 0x6fffffff), Podman (from 100000) and LXD (from
// 1000000), in blocks of 4096 guests. The default daemon has the first.
func uidBase(scope string) uint32 {
	const first, block, blocks = 0x70000000, 4096 * 65536, 8
	if scope == "" {
		return first
	}
	h := sha256.Sum256([]byte(scope))
	return first + uint32(1+int(h[0])%(blocks-1))*block
}

// libexec finds a helper program: where the configuration says, beside the
// daemon's own binary, or in the libexec directory that belongs to it.
func (c *Config) libexec(name string) (string, error) {
	var tried []string
	dirs := []string{c.Libexec}
	if self, err := os.Executable(); err == nil {
		bin := filepath.Dir(self)
		dirs = append(dirs, bin, filepath.Join(filepath.Dir(bin), "libexec", "cleave"))
	}
	for _, d := range dirs {
		if d == "" {
			continue
		}
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
		tried = append(tried, p)
	}
	return "", api.Errorf(api.CodeNotFound, "%s is not at any of %v", name, tried).WithHint("build it with `make build`, or give --libexec")
}

// agentFor finds the agent for guests of an architecture, as Go names it.
func (c *Config) agentFor(arch string) (string, error) {
	if arch == runtime.GOARCH {
		return c.libexec("cleave-agent")
	}
	p, err := c.libexec("cleave-agent." + arch)
	if err != nil {
		return "", api.Errorf(api.CodeUnsupported, "guests of architecture %s need their own agent: %s", arch, api.AsError(err).Message).
			WithHint("build the agents of other architectures with `make agents`, and install them with `make install`")
	}
	return p, nil
}
