package image

import (
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/manifest"
)

// offer is one image of an archive, perhaps for several platforms.
type offer struct {
	label string   // as the archive calls it
	names []string // complete names, if it has any
	// Either an OCI layout's manifests, or docker save's parts.
	manifests []v1.Descriptor
	config    string
	layers    []string
}

// Annotations that name an image in an OCI layout (OCI image-spec
// annotations.md, and what containerd and Docker write).
const (
	annotationRef  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// offers lists the images of an archive; nil means that it is none. Current
// Docker writes both forms at once; the OCI layout says more.
func (a *archive) offers() ([]offer, error) {
	if a.has("oci-layout") && a.has("index.json") {
		return a.layoutOffers()
	}
	if a.has("manifest.json") {
		return a.dockerOffers()
	}
	return nil, nil
}

func (a *archive) has(name string) bool {
	inode, _ := a.tree.Lookup(name)
	return inode != nil && inode.FileMode().IsRegular()
}

// layoutOffers reads an OCI layout's index (OCI image-spec image-layout.md).
// Entries of the same name are one image for several platforms.
func (a *archive) layoutOffers() ([]offer, error) {
	raw, err := a.file("index.json", manifest.MaxManifest)
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, api.Errorf(api.CodeCorrupt, "index.json is not JSON of the right shape: %w", err)
	}
	offers := []offer{}
	for _, d := range index.Manifests {
		label := d.Annotations[annotationName]
		if label == "" {
			label = d.Annotations[annotationRef]
		}
		if n := slices.IndexFunc(offers, func(o offer) bool { return o.label == label }); n >= 0 {
			offers[n].manifests = append(offers[n].manifests, d)
			continue
		}
		o := offer{label: label, manifests: []v1.Descriptor{d}}
		o.addName(label)
		offers = append(offers, o)
	}
	return offers, nil
}

// addName takes a label for a name unless it is only a tag, as `skopeo copy
// ... oci-archive:FILE:latest` writes.
func (o *offer) addName(label string) {
	if !strings.ContainsAny(label, ":/") {
		return
	}
	if name, err := tagName(label); err == nil {
		o.names = append(o.names, name)
	}
}

// dockerOffers reads what docker save writes. A manifest.json of another
// shape belongs to a root file system.
func (a *archive) dockerOffers() ([]offer, error) {
	raw, err := a.file("manifest.json", manifest.MaxManifest)
	if err != nil {
		return nil, nil
	}
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if json.Unmarshal(raw, &entries) != nil || len(entries) == 0 || entries[0].Config == "" {
		return nil, nil
	}
	offers := []offer{}
	for _, e := range entries {
		o := offer{label: strings.Join(e.RepoTags, " "), config: e.Config, layers: e.Layers}
		for _, tag := range e.RepoTags {
			o.addName(tag)
		}
		offers = append(offers, o)
	}
	return offers, nil
}

// choose returns the image that is meant, and the names it will have.
func choose(offers []offer, name string) (offer, []string, error) {
	var labels []string
	for _, o := range offers {
		if o.label != "" {
			labels = append(labels, o.label)
		}
		if name != "" && slices.Contains(o.names, name) {
			return o, []string{name}, nil
		}
	}
	switch {
	case len(offers) == 0:
		return offer{}, nil, api.Errorf(api.CodeInvalid, "the archive has no image")
	case len(offers) > 1:
		return offer{}, nil, api.Errorf(api.CodeInvalid, "the archive has %d images: %s", len(offers), strings.Join(labels, ", ")).
			WithField("name").WithHint("choose one of them by --name")
	case name != "":
		return offers[0], []string{name}, nil
	case len(offers[0].names) == 0:
		return offer{}, nil, api.Errorf(api.CodeInvalid, "the archive doesn't say how its image is called").
			WithField("name").WithHint("give a name with --name")
	}
	return offers[0], offers[0].names, nil
}

func (s *Store) importArchive(ctx context.Context, a *archive, offers []offer, name string, want v1.Platform, p Progress) (*api.Image, error) {
	o, names, err := choose(offers, name)
	if err != nil {
		return nil, err
	}
	img, err := a.image1(ctx, o, want)
	if err != nil {
		return nil, err
	}
	return s.assemble(ctx, img, source{names: names, from: "import"}, &archiveLayers{a, o, img}, p)
}

// image1 finds the one image of an offer for a platform.
func (a *archive) image1(ctx context.Context, o offer, want v1.Platform) (*manifest.Image, error) {
	if o.manifests != nil {
		body, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: o.manifests})
		if err != nil {
			return nil, err
		}
		return manifest.Resolve(ctx, a, body, "", want)
	}
	raw, err := a.file(o.config, manifest.MaxConfig)
	if err != nil {
		return nil, err
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, api.Errorf(api.CodeCorrupt, "%.200s is not JSON of the right shape: %w", o.config, err)
	}
	if len(config.RootFS.DiffIDs) != len(o.layers) {
		return nil, api.Errorf(api.CodeCorrupt, "manifest.json has %d layers and the configuration %d", len(o.layers), len(config.RootFS.DiffIDs))
	}
	layers := make([]v1.Descriptor, len(o.layers))
	for n, path := range o.layers {
		inode, _ := a.tree.Lookup(path)
		if inode == nil {
			return nil, api.Errorf(api.CodeCorrupt, "the archive has no %.200s", path)
		}
		layers[n] = v1.Descriptor{MediaType: types.OCIUncompressedLayer, Digest: config.RootFS.DiffIDs[n], Size: inode.Data.Size}
	}
	return manifest.FromConfig(raw, layers, want)
}

// Manifest and Blob make an archive a manifest.Source.
func (a *archive) Manifest(_ context.Context, digest string) ([]byte, string, error) {
	body, err := a.file(blobPath(digest), manifest.MaxManifest)
	return body, "", err
}

func (a *archive) Blob(_ context.Context, d v1.Descriptor, limit int64) ([]byte, error) {
	return a.file(blobPath(d.Digest.String()), limit)
}

func blobPath(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

// archiveLayers are the layers of an image in an archive. They are verified
// by what they unpack to.
type archiveLayers struct {
	a   *archive
	o   offer
	img *manifest.Image
}

func (l *archiveLayers) open(_ context.Context, n int) (io.ReadCloser, int64, error) {
	path := blobPath(l.img.Layers[n].Digest.String())
	if l.o.manifests == nil {
		path = l.o.layers[n]
	}
	inode, _ := l.a.tree.Lookup(path)
	if inode == nil || !inode.FileMode().IsRegular() {
		return nil, 0, api.Errorf(api.CodeCorrupt, "the archive has no %.200s", path)
	}
	return io.NopCloser(l.a.image.Open(inode.Data)), inode.Data.Size, nil
}
