package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/reference"
)

// dockerHubKey is how Docker files its own registry, for historical reasons.
const dockerHubKey = "https://index.docker.io/v1/"

// Keychain finds credentials in a Docker configuration file. It is read anew
// for every use, so that `docker login` has effect at once.
type Keychain struct {
	path string // file or directory; empty: where Docker looks
}

// NewKeychain returns a keychain on a config.json or its directory; if path
// is empty, $DOCKER_CONFIG or ~/.docker is used.
func NewKeychain(path string) *Keychain { return &Keychain{path: path} }

type dockerConfig struct {
	Auths       map[string]authn.AuthConfig `json:"auths"`
	CredHelpers map[string]string           `json:"credHelpers"`
	CredsStore  string                      `json:"credsStore"`
}

// Find returns the credentials for a registry, or nil.
func (k *Keychain) Find(ctx context.Context, registry string) (*authn.AuthConfig, error) {
	path := k.file()
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var c dockerConfig
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read credentials from %s: %w", path, err)
	}
	return c.find(ctx, registry)
}

func (k *Keychain) file() string {
	path := k.path
	if path == "" {
		path = os.Getenv("DOCKER_CONFIG")
	}
	if path == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		path = filepath.Join(home, ".docker")
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "config.json")
	}
	return path
}

// find follows Docker: a helper for this registry, else the store, else the
// file itself.
func (c *dockerConfig) find(ctx context.Context, registry string) (*authn.AuthConfig, error) {
	keys := []string{registry, "https://" + registry, "https://" + registry + "/v1/", "https://" + registry + "/v2/"}
	if registry == reference.DefaultRegistry {
		keys = []string{dockerHubKey, "index.docker.io", "docker.io", "https://index.docker.io"}
	}
	for _, key := range keys {
		if h := c.CredHelpers[key]; h != "" {
			return helper(ctx, h, key)
		}
	}
	if c.CredsStore != "" {
		if a, err := helper(ctx, c.CredsStore, keys[0]); a != nil || err != nil {
			return a, err
		}
	}
	for _, key := range keys {
		if a, ok := c.Auths[key]; ok && a != (authn.AuthConfig{}) {
			return &a, nil
		}
	}
	return nil, nil
}

// helperName keeps a configured helper to the programs that are meant: those
// on PATH called docker-credential-NAME.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

const helperTimeout = 30 * time.Second

// helper asks a credential helper (docker-credential-helpers, "get").
func helper(ctx context.Context, name, server string) (*authn.AuthConfig, error) {
	if !helperName.MatchString(name) {
		return nil, api.Errorf(api.CodeInvalid, "credential helper %.60q: not a helper's name", name)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+name, "get")
	cmd.Stdin = strings.NewReader(server)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(out.String() + stderr.String())
		if strings.Contains(said, "credentials not found") {
			return nil, nil
		}
		return nil, api.Errorf(api.CodeUnauthorized, "credential helper docker-credential-%s for %s: %.200s: %w", name, server, said, err)
	}
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		return nil, fmt.Errorf("credential helper docker-credential-%s: %w", name, err)
	}
	if got.Username == "<token>" {
		return &authn.AuthConfig{IdentityToken: got.Secret}, nil
	}
	return &authn.AuthConfig{Username: got.Username, Password: got.Secret}, nil
}
