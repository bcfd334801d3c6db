// Package manifest finds the one image that is meant in what a registry or
// an archive offers: it follows indexes to a platform, verifies every
// document against its digest, and refuses what is no runnable Linux image
// (OCI image-spec manifest.md, image-index.md, config.md; Docker image
// manifest v2, schema 2).
package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cleave-project/cleave/api"
)

// Bounds of hostile documents. The first is what registries must accept at
// least (OCI distribution-spec, "Pushing Manifests").
const (
	MaxManifest = 4 << 20
	MaxConfig   = 8 << 20
	maxLayers   = 512
	maxLayer    = 1 << 40
	maxNesting  = 3
)

// Source fetches documents. It need not verify them, but must not return
// more than limit bytes.
type Source interface {
	// Manifest fetches a manifest or an index; the media type is what the
	// source says of it, or empty.
	Manifest(ctx context.Context, digest string) (body []byte, mediaType string, err error)
	// Blob fetches a small blob.
	Blob(ctx context.Context, d v1.Descriptor, limit int64) ([]byte, error)
}

// Image is one image of one platform.
type Image struct {
	Digest    string // of its manifest
	Platform  string
	Layers    []v1.Descriptor
	DiffIDs   []string // digests of the unpacked layers, in the same order
	Config    v1.ConfigFile
	RawConfig []byte
}

// Digest is the digest of a document.
func Digest(p []byte) string {
	sum := sha256.Sum256(p)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Resolve reads the document and follows it to the image for a platform.
func Resolve(ctx context.Context, src Source, body []byte, mediaType string, p v1.Platform) (*Image, error) {
	for range maxNesting {
		doc, err := parse(body, mediaType)
		if err != nil {
			return nil, err
		}
		if doc.isImage() {
			return doc.image(ctx, src, body, p)
		}
		d, err := Choose(doc.Manifests, p)
		if err != nil {
			return nil, err
		}
		if body, mediaType, err = src.Manifest(ctx, d.Digest.String()); err != nil {
			return nil, err
		}
		if Digest(body) != d.Digest.String() {
			return nil, api.Errorf(api.CodeCorrupt, "the manifest doesn't have its digest %s", d.Digest)
		}
		if mediaType == "" {
			mediaType = string(d.MediaType)
		}
	}
	return nil, api.Errorf(api.CodeCorrupt, "indexes are nested more than %d deep", maxNesting)
}

// document is a manifest or an index.
type document struct {
	SchemaVersion int64            `json:"schemaVersion"`
	MediaType     types.MediaType  `json:"mediaType"`
	ArtifactType  string           `json:"artifactType"`
	Config        *v1.Descriptor   `json:"config"`
	Layers        *[]v1.Descriptor `json:"layers"`
	Manifests     []v1.Descriptor  `json:"manifests"`
	FSLayers      json.RawMessage  `json:"fsLayers"`
}

func (d *document) isImage() bool { return d.MediaType.IsImage() }

// parse reads a document and decides once what it is. One that could be read
// as both a manifest and an index is refused (CVE-2021-41190).
func parse(body []byte, mediaType string) (*document, error) {
	var d document
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, api.Errorf(api.CodeCorrupt, "the manifest is not JSON of the right shape: %w", err)
	}
	if d.SchemaVersion == 1 || d.FSLayers != nil {
		return nil, api.Errorf(api.CodeUnsupported, "the image is of Docker's schema 1, which was withdrawn in 2017").
			WithHint("push it again with a current tool")
	}
	said := types.MediaType(strings.TrimSpace(strings.SplitN(mediaType, ";", 2)[0]))
	switch {
	case d.MediaType == "" && (said.IsImage() || said.IsIndex()):
		d.MediaType = said
	case d.MediaType == "" && d.Layers != nil:
		d.MediaType = types.OCIManifestSchema1
	case d.MediaType == "" && d.Manifests != nil:
		d.MediaType = types.OCIImageIndex
	case (said.IsImage() || said.IsIndex()) && said != d.MediaType:
		return nil, api.Errorf(api.CodeCorrupt, "the manifest says it is %q and was sent as %q", d.MediaType, said)
	}
	switch {
	case !d.MediaType.IsImage() && !d.MediaType.IsIndex():
		return nil, api.Errorf(api.CodeUnsupported, "%q is no image", d.MediaType)
	case d.isImage() && d.Manifests != nil, !d.isImage() && (d.Layers != nil || d.Config != nil):
		return nil, api.Errorf(api.CodeCorrupt, "the document is both a manifest and an index")
	case d.isImage() && (d.Config == nil || d.Layers == nil):
		return nil, api.Errorf(api.CodeCorrupt, "the manifest has no configuration or no layers")
	}
	return &d, nil
}

// image checks a manifest and fetches its configuration.
func (d *document) image(ctx context.Context, src Source, body []byte, p v1.Platform) (*Image, error) {
	if mt := d.Config.MediaType; !mt.IsConfig() {
		kind := string(mt)
		if d.ArtifactType != "" {
			kind = d.ArtifactType
		}
		return nil, api.Errorf(api.CodeUnsupported, "it is no image to run but an artifact of type %q", kind)
	}
	if len(*d.Layers) > maxLayers {
		return nil, api.Errorf(api.CodeCorrupt, "it has %d layers; at most %d are accepted", len(*d.Layers), maxLayers)
	}
	for _, l := range *d.Layers {
		if err := checkLayer(l); err != nil {
			return nil, err
		}
	}
	if d.Config.Size < 0 || d.Config.Size > MaxConfig {
		return nil, api.Errorf(api.CodeCorrupt, "it has a configuration of %d bytes", d.Config.Size)
	}
	raw, err := src.Blob(ctx, *d.Config, MaxConfig)
	if err != nil {
		return nil, err
	}
	if Digest(raw) != d.Config.Digest.String() {
		return nil, api.Errorf(api.CodeCorrupt, "the configuration doesn't have its digest %s", d.Config.Digest)
	}
	img := &Image{Digest: Digest(body), Layers: *d.Layers}
	if err := img.setConfig(raw); err != nil {
		return nil, err
	}
	return img, img.checkPlatform(p)
}

// FromConfig makes an image of a configuration and the unpacked layers that
// belong to it, for archives that have no manifest.
func FromConfig(raw []byte, layers []v1.Descriptor, p v1.Platform) (*Image, error) {
	config := v1.Descriptor{MediaType: types.OCIConfigJSON, Size: int64(len(raw))}
	var err error
	if config.Digest, err = v1.NewHash(Digest(raw)); err != nil {
		return nil, err
	}
	body, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: layers,
	})
	if err != nil {
		return nil, err
	}
	img := &Image{Digest: Digest(body), Layers: layers}
	if err := img.setConfig(raw); err != nil {
		return nil, err
	}
	return img, img.checkPlatform(p)
}

func (i *Image) setConfig(raw []byte) error {
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&i.Config); err != nil {
		return api.Errorf(api.CodeCorrupt, "the configuration is not JSON of the right shape: %w", err)
	}
	i.RawConfig = raw
	i.DiffIDs = make([]string, len(i.Config.RootFS.DiffIDs))
	for n, h := range i.Config.RootFS.DiffIDs {
		if h.Algorithm != "sha256" {
			return api.Errorf(api.CodeUnsupported, "a layer is named by %s; only sha256 is supported", h.Algorithm)
		}
		i.DiffIDs[n] = h.String()
	}
	if len(i.DiffIDs) != len(i.Layers) {
		return api.Errorf(api.CodeCorrupt, "the manifest has %d layers and the configuration %d", len(i.Layers), len(i.DiffIDs))
	}
	i.Platform = v1.Platform{OS: i.Config.OS, Architecture: i.Config.Architecture, Variant: i.Config.Variant}.String()
	return nil
}

func checkLayer(l v1.Descriptor) error {
	switch {
	case !l.MediaType.IsDistributable():
		return api.Errorf(api.CodeUnsupported, "it has a layer that may not be distributed (%s), as Windows images do", l.MediaType)
	case !layerTypes[l.MediaType]:
		return api.Errorf(api.CodeUnsupported, "it has a layer of the unknown type %q", l.MediaType)
	case l.Size < 0 || l.Size > maxLayer:
		return api.Errorf(api.CodeCorrupt, "it has a layer of %d bytes", l.Size)
	case l.Digest.Algorithm != "sha256":
		return api.Errorf(api.CodeUnsupported, "a layer is named by %s; only sha256 is supported", l.Digest.Algorithm)
	}
	return nil
}

var layerTypes = map[types.MediaType]bool{
	types.OCILayer:                true,
	types.OCILayerZStd:            true,
	types.OCIUncompressedLayer:    true,
	types.DockerLayer:             true,
	types.DockerUncompressedLayer: true,

	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
}
