package credentials

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

// helpers puts credential helpers on PATH: one that knows reg.example and
// Docker's own registry, one with a token, one that fails, one that babbles.
func helpers(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for name, script := range map[string]string{
		"knows":   `read -r s; case $s in reg.example|https://index.docker.io/v1/) echo '{"ServerURL":"x","Username":"helped","Secret":"by"}';; *) echo 'credentials not found in native keychain'; exit 1;; esac`,
		"token":   `echo '{"Username":"<token>","Secret":"refresh"}'`,
		"fails":   `echo 'the keyring is locked' >&2; exit 1`,
		"babbles": `echo hello`,
	} {
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestFindFollowsDocker(t *testing.T) {
	helpers(t)
	me := &api.RegistryAuth{Username: "me", Password: "se:cret"}
	helped := &api.RegistryAuth{Username: "helped", Password: "by"}
	encoded := base64.StdEncoding.EncodeToString([]byte("me:se:cret"))
	for name, c := range map[string]struct {
		config, registry string
		want             *api.RegistryAuth
	}{
		"nothing":            {`{}`, "reg.example", nil},
		"auth":               {`{"auths":{"reg.example":{"auth":"` + encoded + `"}}}`, "reg.example", me},
		"auth without pad":   {`{"auths":{"reg.example":{"auth":"` + strings.TrimRight(encoded, "=") + `"}}}`, "reg.example", me},
		"in the clear":       {`{"auths":{"reg.example":{"username":"me","password":"se:cret"}}}`, "reg.example", me},
		"as an address":      {`{"auths":{"https://reg.example/v1/":{"auth":"` + encoded + `"}}}`, "reg.example", me},
		"with a port":        {`{"auths":{"reg.example:5000":{"auth":"` + encoded + `"}}}`, "reg.example:5000", me},
		"another's port":     {`{"auths":{"reg.example:5000":{"auth":"` + encoded + `"}}}`, "reg.example", nil},
		"another's":          {`{"auths":{"other.example":{"auth":"` + encoded + `"}}}`, "reg.example", nil},
		"Docker Hub":         {`{"auths":{"https://index.docker.io/v1/":{"auth":"` + encoded + `"}}}`, "docker.io", me},
		"identity token":     {`{"auths":{"reg.example":{"auth":"bWU6","identitytoken":"refresh"}}}`, "reg.example", &api.RegistryAuth{Username: "me", IdentityToken: "refresh"}},
		"registry token":     {`{"auths":{"reg.example":{"registrytoken":"bearer"}}}`, "reg.example", &api.RegistryAuth{Token: "bearer"}},
		"helper":             {`{"credHelpers":{"reg.example":"knows"}}`, "reg.example", helped},
		"helper, Docker Hub": {`{"credsStore":"knows"}`, "docker.io", helped},
		"helper's token":     {`{"credHelpers":{"reg.example":"token"}}`, "reg.example", &api.RegistryAuth{IdentityToken: "refresh"}},
		"helper before file": {`{"credHelpers":{"reg.example":"knows"},"auths":{"reg.example":{"auth":"` + encoded + `"}}}`, "reg.example", helped},
		"file after store":   {`{"credsStore":"knows","auths":{"else.example":{"auth":"` + encoded + `"}}}`, "else.example", me},
		// Docker leaves such an entry where the store has the secret.
		"empty entry": {`{"credsStore":"knows","auths":{"else.example":{}}}`, "else.example", nil},
		// What is wrong with another registry's entry is no concern of this one.
		"bad neighbour": {`{"auths":{"bad.example":{"auth":"%"},"reg.example":{"auth":"` + encoded + `"}}}`, "reg.example", me},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{dir, filepath.Join(dir, "config.json")} {
				got, err := Find(t.Context(), path, c.registry)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

func TestFindLooksWhereDockerLooks(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", "")
	write := func(dir, user string) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		text := `{"auths":{"reg.example":{"username":"` + user + `"}}}`
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(user string) {
		t.Helper()
		a, err := Find(t.Context(), "", "reg.example")
		if err != nil {
			t.Fatal(err)
		}
		if got := a; (got == nil) != (user == "") || got != nil && got.Username != user {
			t.Errorf("found %+v, want %q", got, user)
		}
	}
	want("")
	write(filepath.Join(home, ".docker"), "home")
	want("home")
	other := t.TempDir()
	write(other, "other")
	t.Setenv("DOCKER_CONFIG", other)
	want("other")
}

func TestFindSaysWhatIsWrong(t *testing.T) {
	helpers(t)
	for name, c := range map[string]struct {
		config string
		code   api.Code
		text   string
	}{
		"no JSON":         {`nonsense`, api.CodeInvalid, "config.json"},
		"no base64":       {`{"auths":{"reg.example":{"auth":"se%cret"}}}`, api.CodeInvalid, "base64"},
		"no colon":        {`{"auths":{"reg.example":{"auth":"c2VjcmV0"}}}`, api.CodeInvalid, "USER:PASSWORD"},
		"path as helper":  {`{"credsStore":"../knows"}`, api.CodeInvalid, "../knows"},
		"no such helper":  {`{"credsStore":"cleave-absent"}`, api.CodeUnauthorized, "docker-credential-cleave-absent"},
		"helper fails":    {`{"credsStore":"fails"}`, api.CodeUnauthorized, "the keyring is locked"},
		"helper's answer": {`{"credsStore":"babbles"}`, api.CodeUnauthorized, "docker-credential-babbles"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Find(t.Context(), path, "reg.example")
			if !api.IsCode(err, c.code) || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("got %v, want %s with %q", err, c.code, c.text)
			}
			if strings.Contains(err.Error(), "cret") {
				t.Errorf("the error shows a secret: %v", err)
			}
		})
	}
}

// FuzzRead feeds entries of a file that other programs write too.
func FuzzRead(f *testing.F) {
	f.Add("bWU6c2VjcmV0")
	f.Add("bWU6")
	f.Add("%%%")
	f.Fuzz(func(t *testing.T, auth string) {
		a, err := entry{Auth: auth}.read()
		if (a == nil) == (err == nil) {
			t.Errorf("%q: %v, %v", auth, a, err)
		}
	})
}
