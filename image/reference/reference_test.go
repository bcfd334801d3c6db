package reference

import (
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

var hex64 = strings.Repeat("0123456789abcdef", 4)

func TestParseCompletesNames(t *testing.T) {
	for in, want := range map[string]string{
		"debian":                           "docker.io/library/debian:latest",
		"debian:bookworm":                  "docker.io/library/debian:bookworm",
		"docker.io/debian":                 "docker.io/library/debian:latest",
		"index.docker.io/a/b":              "docker.io/a/b:latest",
		"team/app:1.2":                     "docker.io/team/app:1.2",
		"localhost/x":                      "localhost/x:latest",
		"localhost:5000/x/y:tag":           "localhost:5000/x/y:tag",
		"127.0.0.1:5000/x":                 "127.0.0.1:5000/x:latest",
		"[::1]:5000/x":                     "[::1]:5000/x:latest",
		"quay.io/a/b/c/d":                  "quay.io/a/b/c/d:latest",
		"MyHost/x":                         "MyHost/x:latest",
		"x@sha256:" + hex64:                "docker.io/library/x@sha256:" + hex64,
		"x:tag@sha256:" + hex64:            "docker.io/library/x@sha256:" + hex64,
		"reg.example.com:443/a__b/c-d.e:T": "reg.example.com:443/a__b/c-d.e:T",
	} {
		r, err := Parse(in)
		if err != nil || r.String() != want {
			t.Errorf("%q: got %q, %v; want %q", in, r, err, want)
		}
	}
}

func TestParseRefusesMalformedNames(t *testing.T) {
	for _, in := range []string{
		"", ":", "@", "a:", "a@", "UPPER", "a/../b", "../a", "a//b", "/a", "a/", "a b", "a:b:c", "-a",
		"a@sha256:abc", "a@md5:" + hex64, "a:" + strings.Repeat("t", 129), strings.Repeat("a/", 150) + "a",
		"ho st.com/x", "a\x00b", "http://host/x", "host.com:port/x", "[::1/x", "a:ta g",
	} {
		if r, err := Parse(in); !api.IsCode(err, api.CodeInvalid) {
			t.Errorf("%q: got %v, %v", in, r, err)
		}
	}
}

func TestLoopbackIsThisHostOnly(t *testing.T) {
	for in, want := range map[string]bool{
		"localhost:5000/x": true, "localhost/x": true, "127.0.0.1:1/x": true, "127.1.2.3/x": true, "[::1]:5/x": true,
		"10.0.0.1:5000/x": false, "localhost.example.com/x": false, "x.localhost/x": false, "debian": false,
	} {
		if r, err := Parse(in); err != nil || r.Loopback() != want {
			t.Errorf("%q: %v, %v", in, r.Loopback(), err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"debian", "a.b:5/c:d", "x@sha256:" + hex64, "[::1]:5000/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again.String() != r.String() {
			t.Errorf("%q becomes %q becomes %q (%v)", s, r, again, err)
		}
	})
}
