// Package credentials finds what a user has for a registry, where
// `docker login` leaves it: in the auths of a Docker configuration file, or
// with a credential helper that the file names (docker-credential-helpers).
//
// The file is read anew for every call, so that a login has effect at once.
// The daemon and the command line both use the package, each for its own
// user; it links little, as the command line's start is a promise.
package credentials

import (
	"bytes"
	"context"
	"encoding/base64"
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

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/reference"
)

// dockerHubKey is how Docker files its own registry, for historical reasons.
const dockerHubKey = "https://index.docker.io/v1/"

// config is what is of use in a config.json.
type config struct {
	Auths       map[string]entry  `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// entry is one of auths. Where a helper keeps the secret, it is empty.
type entry struct {
	Auth          string `json:"auth"` // base64 of USER:PASSWORD
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Find returns the credentials for a registry (a host, with its port if it
// has one), or nil if there are none. Path is a config.json or its
// directory; if empty, $DOCKER_CONFIG or ~/.docker is used.
func Find(ctx context.Context, path, registry string) (*api.RegistryAuth, error) {
	path = file(path)
	if path == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var c config
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "read the Docker configuration %s: %w", path, err)
	}
	a, err := c.find(ctx, registry)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s in %s: %w", registry, path, err)
	}
	return a, nil
}

// file is the configuration file; it need not exist.
func file(path string) string {
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
func (c *config) find(ctx context.Context, registry string) (*api.RegistryAuth, error) {
	keys := []string{registry, "https://" + registry, "https://" + registry + "/v1/", "https://" + registry + "/v2/"}
	if registry == reference.DefaultRegistry {
		keys = []string{dockerHubKey, "index.docker.io", "docker.io", "https://index.docker.io"}
	}
	for _, key := range keys {
		if h := c.CredHelpers[key]; h != "" {
			return ask(ctx, h, key)
		}
	}
	if c.CredsStore != "" {
		if a, err := ask(ctx, c.CredsStore, keys[0]); a != nil || err != nil {
			return a, err
		}
	}
	for _, key := range keys {
		if e := c.Auths[key]; e != (entry{}) {
			return e.read()
		}
	}
	return nil, nil
}

// read turns an entry into credentials. User and password may stand in it
// encoded, as Docker writes them, or in the clear.
func (e entry) read() (*api.RegistryAuth, error) {
	a := &api.RegistryAuth{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, Token: e.RegistryToken}
	if e.Auth == "" {
		return a, nil
	}
	// Not all who write the file pad it.
	plain, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(e.Auth, "="))
	user, password, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok {
		// Without the text: it is a secret.
		return nil, api.Errorf(api.CodeInvalid, "auth is not the base64 form of USER:PASSWORD")
	}
	a.Username, a.Password = user, strings.Trim(password, "\x00")
	return a, nil
}

// helperName keeps a configured helper to the programs that are meant: those
// on PATH called docker-credential-NAME.
var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

const helperTimeout = 30 * time.Second

// ask gets the credentials that a helper keeps for a server.
func ask(ctx context.Context, name, server string) (*api.RegistryAuth, error) {
	if !helperName.MatchString(name) {
		return nil, api.Errorf(api.CodeInvalid, "credential helper %.60q: not a helper's name", name)
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	program := "docker-credential-" + name
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(out.String() + stderr.String())
		if strings.Contains(said, "credentials not found") {
			return nil, nil
		}
		return nil, api.Errorf(api.CodeUnauthorized, "%s get: %.200s: %w", program, said, err)
	}
	var got struct{ Username, Secret string }
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		return nil, api.Errorf(api.CodeUnauthorized, "%s get: its answer can't be read: %w", program, err)
	}
	// The name by which helpers tell that the secret is a token of OAuth 2.
	if got.Username == "<token>" {
		return &api.RegistryAuth{IdentityToken: got.Secret}, nil
	}
	return &api.RegistryAuth{Username: got.Username, Password: got.Secret}, nil
}
