package manifest

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cleave-project/cleave/api"
)

// offered is a source in memory.
type offered map[string][]byte

func (o offered) Manifest(_ context.Context, digest string) ([]byte, string, error) {
	if b, ok := o[digest]; ok {
		return b, "", nil
	}
	return nil, "", errors.New("not there")
}

func (o offered) Blob(_ context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	b, ok := o[d.Digest.String()]
	if !ok || int64(len(b)) > limit {
		return nil, errors.New("not there")
	}
	return b, nil
}

func (o offered) add(t testing.TB, mt types.MediaType, v any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(Digest(b))
	if err != nil {
		t.Fatal(err)
	}
	o[h.String()] = b
	return v1.Descriptor{MediaType: mt, Digest: h, Size: int64(len(b))}
}

func (o offered) image(t testing.TB, arch string) v1.Descriptor {
	t.Helper()
	c := o.add(t, types.OCIConfigJSON, v1.ConfigFile{OS: "linux", Architecture: arch})
	return o.add(t, types.OCIManifestSchema1, v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: c, Layers: []v1.Descriptor{}})
}

func amd64() v1.Platform { return v1.Platform{OS: "linux", Architecture: "amd64"} }

func TestResolveFollowsIndexes(t *testing.T) {
	o := offered{}
	img := o.image(t, "amd64")
	inner := o.add(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{img}})
	outer := o.add(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{inner}})
	got, err := Resolve(t.Context(), o, o[outer.Digest.String()], "", amd64())
	if err != nil || got.Digest != img.Digest.String() || got.Platform != "linux/amd64" {
		t.Errorf("%+v, %v", got, err)
	}
	deeper := o.add(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{outer}})
	if _, err := Resolve(t.Context(), o, o[deeper.Digest.String()], "", amd64()); !api.IsCode(err, api.CodeCorrupt) {
		t.Error(err)
	}
}

func TestResolveVerifiesWhatItFetches(t *testing.T) {
	o := offered{}
	img := o.image(t, "amd64")
	index := o.add(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{img}})
	for digest, b := range o {
		if digest == index.Digest.String() {
			continue
		}
		o[digest] = append([]byte(" "), b...)
		if _, err := Resolve(t.Context(), o, o[index.Digest.String()], "", amd64()); !api.IsCode(err, api.CodeCorrupt) {
			t.Errorf("%s: %v", b, err)
		}
		o[digest] = b
	}
}

func TestResolveBelievesTheConfigurationWithoutAPlatform(t *testing.T) {
	o := offered{}
	img := o.image(t, "s390x")
	_, err := Resolve(t.Context(), o, o[img.Digest.String()], string(types.OCIManifestSchema1), amd64())
	if !api.IsCode(err, api.CodeNotFound) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Error(err)
	}
}

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/x86_64": "linux/amd64", "linux/aarch64": "linux/arm64", "linux/arm64/v8": "linux/arm64",
		"linux/armhf": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "linux/amd64/v3": "linux/amd64/v3", "linux/i386": "linux/386",
	} {
		if p, err := ParsePlatform(in); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
	for _, in := range []string{"linux", "linux/", "/amd64", "a/b/c/d", "linux/arm/"} {
		if p, err := ParsePlatform(in); !api.IsCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
}

func FuzzResolve(f *testing.F) {
	o := offered{}
	img := o.image(f, "amd64")
	config := o[""]
	for digest, b := range o {
		if digest != img.Digest.String() {
			config = b
		}
	}
	f.Add(o[img.Digest.String()], config, string(types.OCIManifestSchema1))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:aa","platform":{"os":"linux"}}]}`), []byte(`{}`), "")
	f.Fuzz(func(t *testing.T, body, config []byte, mediaType string) {
		img, err := Resolve(t.Context(), anything{config}, body, mediaType, amd64())
		if err == nil && len(img.Layers) != len(img.DiffIDs) {
			t.Errorf("%d layers, %d contents", len(img.Layers), len(img.DiffIDs))
		}
		if _, err := FromConfig(config, nil, amd64()); err == nil && img != nil && img.Digest == "" {
			t.Error("an image without a digest")
		}
	})
}

// anything answers every request with the same bytes.
type anything struct{ b []byte }

func (a anything) Manifest(context.Context, string) ([]byte, string, error) { return a.b, "", nil }

func (a anything) Blob(context.Context, v1.Descriptor, int64) ([]byte, error) { return a.b, nil }
