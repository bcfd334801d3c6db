package image

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestPullShowsCredentials(t *testing.T) {
	r := newRegistry(t)
	p := r.push("private:1", smallImage(t, "x"))
	r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
		if user, password, ok := req.BasicAuth(); ok && user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("docker-credential-cleavetest", "#!/bin/sh\nread server\n[ \"$server\" = "+r.host+" ] || { echo 'credentials not found in native keychain'; exit 1; }\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n", 0o755)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	good := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	for name, c := range map[string]struct {
		config string
		auth   *api.RegistryAuth
		code   api.Code
	}{
		"none":          {"{}", nil, api.CodeUnauthorized},
		"from the file": {`{"auths":{"` + r.host + `":{"auth":"` + good + `"}}}`, nil, ""},
		"another's":     {`{"auths":{"other.example":{"auth":"` + good + `"}}}`, nil, api.CodeUnauthorized},
		"helper":        {`{"credHelpers":{"` + r.host + `":"cleavetest"}}`, nil, ""},
		"store":         {`{"credsStore":"cleavetest"}`, nil, ""},
		"odd helper":    {`{"credsStore":"../cleavetest"}`, nil, api.CodeInvalid},
		"no helper":     {`{"credsStore":"cleave-absent"}`, nil, api.CodeUnauthorized},
		"bad file":      {`nonsense`, nil, api.CodeInvalid},
		"given":         {"{}", &api.RegistryAuth{Username: "me", Password: "secret"}, ""},
		"given wrong":   {`{"auths":{"` + r.host + `":{"auth":"` + good + `"}}}`, &api.RegistryAuth{Username: "me", Password: "x"}, api.CodeUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, func(o *Options) { o.DockerConfig = write("config.json", c.config, 0o600) })
			_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref, Auth: c.auth}, nil)
			if c.code == "" && err != nil {
				t.Error(err)
			} else if c.code != "" {
				wantError(t, err, c.code)
			}
		})
	}
}
