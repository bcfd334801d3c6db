package image

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

func TestPullExplainsWhatIsNotThere(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	r.push("there:1", smallImage(t, "x"))
	for _, c := range []struct {
		ref   string
		code  api.Code
		words []string
	}{
		{r.host + "/there:2", api.CodeNotFound, []string{"there:2", "check the name and the tag"}},
		{r.host + "/absent:1", api.CodeNotFound, []string{"absent"}},
		{r.host + "/there@sha256:" + strings.Repeat("0", 64), api.CodeNotFound, nil},
		{"127.0.0.1:1/x", api.CodeUnavailable, []string{"127.0.0.1:1", "refused"}},
		{"Bad Name", api.CodeInvalid, nil},
	} {
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: c.ref}, nil)
		wantError(t, err, c.code, c.words...)
	}
	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("%v", l)
	}
	checkNothingHalf(t, s)
}

func TestPullRefusesWhatIsNoImage(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	mediaType := func(mt types.MediaType) change {
		return func(_ *v1.ConfigFile, m *v1.Manifest) { m.Layers[0].MediaType = mt }
	}
	for tag, c := range map[string]struct {
		change change
		code   api.Code
		word   string
	}{
		"artifact": {func(_ *v1.ConfigFile, m *v1.Manifest) {
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}, api.CodeUnsupported, "helm"},
		"foreign":   {mediaType(types.DockerForeignLayer), api.CodeUnsupported, "distributed"},
		"unknown":   {mediaType("application/x-strange"), api.CodeUnsupported, "strange"},
		"encrypted": {mediaType("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), api.CodeUnsupported, "encrypted"},
		"too-few":   {func(c *v1.ConfigFile, _ *v1.Manifest) { c.RootFS.DiffIDs = nil }, api.CodeCorrupt, "0"},
		"negative":  {func(_ *v1.ConfigFile, m *v1.Manifest) { m.Layers[0].Size = -1 }, api.CodeCorrupt, "-1"},
	} {
		p := r.push("no:"+tag, smallImage(t, tag), c.change)
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
		wantError(t, err, c.code, c.word)
	}
	for name, c := range map[string]struct{ body, mt, word string }{
		"both":     {`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"config":{},"layers":[]}`, "application/vnd.oci.image.index.v1+json", "both"},
		"confused": {`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, "application/vnd.oci.image.manifest.v1+json", "sent as"},
		"schema1":  {`{"schemaVersion":1,"name":"x","fsLayers":[]}`, "application/vnd.docker.distribution.manifest.v1+json", "schema 1"},
		"empty":    {`{}`, "application/vnd.oci.image.manifest.v1+json", "no configuration"},
		"text":     {`hello`, "application/vnd.oci.image.manifest.v1+json", "JSON"},
	} {
		r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", c.mt)
			fmt.Fprint(w, c.body)
			return true
		})
		_, err := s.Pull(t.Context(), api.ImagePull{Reference: r.host + "/x:" + name}, nil)
		if err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", name, err)
		}
	}
	checkNothingHalf(t, s)
}

func TestPullRefusesWrongDigests(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("w:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(200_000, 1)}))})
	other := pack(t, "gz", imagetest.Tar(t, file{Name: "a", Body: noise(200_000, 2)}))
	answer := func(part string, body []byte) {
		r.setFault(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, part) {
				return false
			}
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			_, _ = w.Write(body)
			return true
		})
	}
	same := append(other[:0:0], other...)
	answer(p.layers[0].Digest.String(), same[:min(len(same), int(p.layers[0].Size))])
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, nil)
	wantError(t, err, api.CodeCorrupt, "layer")

	answer("/manifests/", []byte(`{"schemaVersion":2}`))
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: r.host + "/w@" + p.digest}, nil)
	wantError(t, err, api.CodeCorrupt, "digest")

	r.setFault(nil)
	q := r.push("w:2", smallImage(t, "x"), func(c *v1.ConfigFile, _ *v1.Manifest) { c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64) })
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: q.ref}, nil)
	wantError(t, err, api.CodeCorrupt, "unpacks to")

	if l, _ := s.List(t.Context()); len(l) != 0 {
		t.Errorf("%v", l)
	}
	checkNothingHalf(t, s)
	pull(t, s, p.ref)
}
