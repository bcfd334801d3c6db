package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/manifest"
	"github.com/cleave-project/cleave/image/reference"
	"github.com/cleave-project/cleave/image/registry"
)

// Pull brings an image from a registry, or finds that it is already the one
// that the registry has, and names it.
func (s *Store) Pull(ctx context.Context, req api.ImagePull, p Progress) (*api.Image, error) {
	platform, err := manifest.ParsePlatform(req.Platform)
	if err != nil {
		return nil, err
	}
	if name, err := completeName(req.Reference); err == nil && name == baseName {
		if platform.String() != hostPlatform {
			return nil, api.Errorf(api.CodeUnsupported, "image \"base\" is made of this host's own programs, and there is none for %s", platform.String()).
				WithHint("use an image from a registry that has it for this platform")
		}
		return s.Get(ctx, baseName)
	}
	ref, err := reference.Parse(req.Reference)
	if err != nil {
		return nil, err
	}
	auth := api.RegistryAuth{}
	if req.Auth != nil {
		auth = *req.Auth
	}
	// Who shows other credentials must not be handed another's answer.
	key := "pull " + ref.String() + " " + manifest.Digest(fmt.Appendf(nil, "%q %q %v %v", platform.String(), auth, req.PlainHTTP, req.Auth == nil))
	return s.share(ctx, key, p, func(ctx context.Context, p Progress) (*api.Image, error) {
		img, err := s.pull(ctx, ref, platform, req, p)
		if err != nil {
			return nil, within("pull "+ref.String(), err)
		}
		return img, nil
	})
}

func (s *Store) pull(ctx context.Context, ref reference.Ref, platform v1.Platform, req api.ImagePull, p Progress) (*api.Image, error) {
	p("resolving", 0, 0)
	repo, err := s.pool.Open(ctx, ref, registry.Options{PlainHTTP: req.PlainHTTP, Auth: req.Auth})
	if err != nil {
		return nil, err
	}
	which := ref.Tag
	if ref.Digest != "" {
		which = ref.Digest
	}
	body, mediaType, err := repo.Manifest(ctx, which)
	if err != nil {
		return nil, err
	}
	if ref.Digest != "" && manifest.Digest(body) != ref.Digest {
		return nil, api.Errorf(api.CodeCorrupt, "the registry sent a manifest with digest %s", manifest.Digest(body))
	}
	img, err := manifest.Resolve(ctx, repo, body, mediaType, platform)
	if err != nil {
		return nil, err
	}
	return s.pullImage(ctx, ref, repo, img, p)
}

func (s *Store) pullImage(ctx context.Context, ref reference.Ref, repo *registry.Repository, img *manifest.Image, p Progress) (*api.Image, error) {
	from := source{names: []string{ref.String()}, from: ref.String()}
	s.mu.Lock()
	if rec := s.images[img.Digest]; rec != nil {
		defer s.mu.Unlock()
		if err := s.setNames(img.Digest, from.names...); err != nil {
			return nil, err
		}
		return s.view(rec), nil
	}
	s.mu.Unlock()

	compressed := int64(0)
	for _, l := range img.Layers {
		compressed += l.Size
	}
	// The layers and, at the least, as much unpacked.
	if err := s.needSpace(2 * compressed); err != nil {
		return nil, err
	}
	ls := &remoteLayers{store: s, repo: repo, img: img}
	out, err := s.assemble(ctx, img, from, ls, p)
	// What has been verified is kept if the pull failed: the next one needs
	// only the rest.
	ls.release(err == nil)
	return out, err
}

// remoteLayers are the layers of an image in a registry.
type remoteLayers struct {
	store *Store
	repo  *registry.Repository
	img   *manifest.Image

	mu   sync.Mutex
	held []*blob
}

func (r *remoteLayers) open(ctx context.Context, n int) (io.ReadCloser, int64, error) {
	l := r.img.Layers[n]
	digest := l.Digest.String()
	bl, err := r.store.blobs.acquire(ctx, digest, l.Size, func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		return r.repo.Stream(ctx, digest, offset)
	})
	if err != nil {
		return nil, 0, err
	}
	r.mu.Lock()
	r.held = append(r.held, bl)
	r.mu.Unlock()
	return &explained{bl.reader(ctx), r.repo}, l.Size, nil
}

// release gives all layers back.
func (r *remoteLayers) release(unused bool) {
	for _, bl := range r.held {
		r.store.blobs.release(bl, unused)
	}
}

// explained gives a registry's errors their codes.
type explained struct {
	*blobReader
	repo *registry.Repository
}

func (e *explained) Read(p []byte) (int, error) {
	n, err := e.blobReader.Read(p)
	var disk *fs.PathError
	if err != nil && err != io.EOF && !errors.As(err, &disk) {
		err = e.repo.Explain(err)
	}
	return n, err
}
