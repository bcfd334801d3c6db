package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/compress"
	"github.com/cleave-project/cleave/image/erofs"
	"github.com/cleave-project/cleave/image/manifest"
	"github.com/cleave-project/cleave/image/rootfs"
)

// parallel is how many layers of one image are fetched and unpacked at once.
const parallel = 4

// layers is where an image's layers come from: open returns the stream of one
// and a function to call when its content has been taken over.
type layers interface {
	open(ctx context.Context, n int) (r io.ReadCloser, size int64, err error)
}

// source says where an image came from, for its record.
type source struct {
	names []string
	from  string
}

// rootOf names the tree that layers merge to: the chain ID of OCI image-spec
// config.md.
func rootOf(diffIDs []string) string {
	chain := manifest.Digest(nil)
	for n, id := range diffIDs {
		if n == 0 {
			chain = id
		} else {
			chain = manifest.Digest([]byte(chain + " " + id))
		}
	}
	return chain
}

// assemble makes an image of its layers, unless its root is already there,
// and records it.
func (s *Store) assemble(ctx context.Context, img *manifest.Image, from source, ls layers, p Progress) (*api.Image, error) {
	root := rootOf(img.DiffIDs)
	unlock, err := s.making.lock(ctx, root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer s.hold(root)()
	if _, err := os.Stat(s.rootPath(root)); err == nil {
		return s.record(img, root, from)
	}
	w, err := s.newRoot()
	if err != nil {
		return nil, err
	}
	defer w.abort()
	tree, err := s.unpack(ctx, img, w, ls, p)
	if err != nil {
		return nil, err
	}
	p.report("merging", 0, 0)
	if err := w.finish(tree, root, s.rootPath(root)); err != nil {
		return nil, err
	}
	return s.record(img, root, from)
}

func (p Progress) report(step string, done, total int64) {
	if p != nil {
		p(step, done, total)
	}
}

// hold keeps Delete and Collect from removing a root that is about to get a
// record.
func (s *Store) hold(root string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[root]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.held[root]--; s.held[root] == 0 {
			delete(s.held, root)
		}
	}
}

// unpack fetches, verifies and unpacks all layers and merges them.
func (s *Store) unpack(ctx context.Context, img *manifest.Image, w *rootWriter, ls layers, p Progress) (*rootfs.Tree, error) {
	read := make([]*rootfs.Layer, len(img.Layers))
	first := map[string]int{} // images repeat layers, the empty one most of all
	total := int64(0)
	for n, l := range img.Layers {
		if _, ok := first[l.Digest.String()]; !ok {
			first[l.Digest.String()] = n
			total += l.Size
		}
	}
	meter := &meter{p: p, step: "downloading", total: total}
	opts := rootfs.Options{Image: w.image, Budget: rootfs.NewBudget(int64(s.opts.MaxUnpacked))}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for n, l := range img.Layers {
		if first[l.Digest.String()] != n {
			continue
		}
		g.Go(func() error {
			layer, err := readLayer(gctx, ls, n, img.DiffIDs[n], opts, meter)
			if err != nil {
				return fmt.Errorf("layer %d of %d: %w", n+1, len(img.Layers), err)
			}
			read[n] = layer
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	tree := rootfs.NewTree()
	var dropped []string
	for n, l := range img.Layers {
		f := first[l.Digest.String()]
		if img.DiffIDs[f] != img.DiffIDs[n] {
			return nil, api.Errorf(api.CodeCorrupt, "the configuration gives layer %s two contents", l.Digest)
		}
		if err := tree.Apply(read[f]); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", n+1, len(img.Layers), err)
		}
		dropped = append(dropped, read[f].Dropped...)
	}
	s.warnDropped(img.Digest, dropped)
	return tree, nil
}

func readLayer(ctx context.Context, ls layers, n int, diffID string, opts rootfs.Options, m *meter) (*rootfs.Layer, error) {
	r, size, err := ls.open(ctx, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	packed := m.reader(r, size)
	plain, _, err := compress.NewReader(packed)
	if err != nil {
		return nil, rootfs.StreamError(err)
	}
	defer plain.Close()
	sum := sha256.New()
	ahead := compress.NewAhead(plain, func(p []byte) { sum.Write(p) })
	defer ahead.Close()
	layer, err := rootfs.Read(ctx, ahead, opts)
	if err != nil {
		return nil, err
	}
	// Only the end of the compressed stream says that it was verified.
	if _, err := io.Copy(io.Discard, packed); err != nil {
		return nil, rootfs.StreamError(err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return nil, api.Errorf(api.CodeCorrupt, "it unpacks to %s; the configuration says %s", got, diffID)
	}
	return layer, nil
}

// warnDropped says once what policy left out.
func (s *Store) warnDropped(digest string, dropped []string) {
	if len(dropped) > 0 {
		s.log.Warn("left out of image", "image", digest, "count", len(dropped), "first", dropped[:min(len(dropped), 10)])
	}
}

// record makes an image's record; the caller holds its root.
func (s *Store) record(img *manifest.Image, root string, from source) (*api.Image, error) {
	config := imageConfig(img.Config.Config)
	tree, err := openRoot(s.rootPath(root))
	if err != nil {
		return nil, within("record image", err)
	}
	defer tree.Close()
	st, err := tree.file.Stat()
	if err != nil {
		return nil, within("record image", err)
	}
	rec := &record{
		Image: api.Image{
			Digest:   img.Digest,
			Created:  time.Now().UTC().Truncate(time.Second),
			Size:     allocated(st),
			Platform: img.Platform,
			Source:   from.from,
			System:   isSystem(config, tree.follow),
			Type:     api.ImageRoot,
			Config:   config,
		},
		Root:   root,
		Config: img.RawConfig,
	}
	return s.keep(rec, from.names...)
}

// keep writes a record and its names; the caller holds its root or disk.
func (s *Store) keep(rec *record, names ...string) (*api.Image, error) {
	digest := rec.Image.Digest
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.images[digest]; old != nil {
		rec = old // it came in by another name
	} else {
		if err := s.writeJSON(s.recordPath(digest), rec); err != nil {
			return nil, within("record image", err)
		}
		s.images[digest] = rec
	}
	if err := s.setNames(digest, names...); err != nil {
		return nil, err
	}
	return s.view(rec), nil
}

// rootWriter is an EROFS file in the making.
type rootWriter struct {
	file  *os.File
	image *erofs.Writer
	done  bool
}

func (s *Store) newRoot() (*rootWriter, error) {
	f, err := os.CreateTemp(s.dir(dirTmp), "root-*")
	if err != nil {
		return nil, within("make image", err)
	}
	return &rootWriter{file: f, image: erofs.NewWriter(f)}, nil
}

// abort removes the file unless finish gave it its name.
func (w *rootWriter) abort() {
	if !w.done {
		_ = os.Remove(w.file.Name())
		w.file.Close()
	}
}

// finish writes the tree's metadata and publishes the file.
func (w *rootWriter) finish(tree *rootfs.Tree, root, path string) error {
	var uuid [16]byte
	sum := sha256.Sum256([]byte(root))
	copy(uuid[:], sum[:])
	if _, err := w.image.Finish(tree.Root(), uuid); err != nil {
		var perr *os.PathError
		if errors.As(err, &perr) {
			return within("write image", err)
		}
		return api.Errorf(api.CodeCorrupt, "the image can't be written: %w", err)
	}
	if err := tree.Hidden(w.image.Discard); err != nil {
		return within("write image", err)
	}
	if err := publish(w.file, path); err != nil {
		return within("write image", err)
	}
	w.done = true
	return nil
}
