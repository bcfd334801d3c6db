package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/compress"
	"github.com/cleave-project/cleave/image/disk"
	"github.com/cleave-project/cleave/image/erofs"
	"github.com/cleave-project/cleave/image/manifest"
	"github.com/cleave-project/cleave/image/rootfs"
)

// Import brings an image from an archive: an OCI layout or what docker save
// writes, or the tar file of a root file system; each plain or compressed
// with gzip, xz or zstd. Which it is, its content tells. A root file system
// needs a name; from an archive of several images the name chooses one. A
// disk is imported as by ImportDisk.
func (s *Store) Import(ctx context.Context, r io.Reader, name, platform string, p Progress) (*api.Image, error) {
	want, err := manifest.ParsePlatform(platform)
	if err != nil {
		return nil, err
	}
	complete := ""
	if name != "" {
		if complete, err = tagName(name); err != nil {
			return nil, err
		}
	}
	ctx, end, err := s.began(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	if diskIn(&r) {
		img, err := s.importDisk(ctx, r, name, "", p)
		return img, within("import image", err)
	}
	img, err := s.importStream(ctx, r, complete, want, p)
	if err != nil {
		return nil, within("import image", err)
	}
	return img, nil
}

// peekPacked is how much of a compressed stream is read to see what is in it:
// more than what each format compresses as a unit.
const peekPacked = 512 << 10

// diskIn looks whether the stream is a disk, perhaps compressed. What it has
// read is put back into r.
func diskIn(r *io.Reader) (is bool) {
	if f, ok := (*r).(*os.File); ok {
		head := make([]byte, disk.HeadSize)
		if n, _ := f.ReadAt(head, 0); disk.Detect(head[:n]) != "" {
			return true
		}
	}
	b := bufio.NewReaderSize(*r, peekPacked)
	*r = b
	// What can't be read or unpacked, its importer will explain.
	head, _ := b.Peek(disk.HeadSize)
	if disk.Detect(head) != "" {
		return true
	}
	if !isPacked(head) {
		return false
	}
	head, _ = b.Peek(peekPacked)
	plain, _, err := compress.NewReader(bytes.NewReader(head))
	if err != nil {
		return false
	}
	defer plain.Close()
	inner := make([]byte, disk.HeadSize)
	n, _ := io.ReadFull(plain, inner)
	return disk.Detect(inner[:n]) != ""
}

func isPacked(head []byte) bool {
	plain, format, err := compress.NewReader(bytes.NewReader(head))
	if err == nil {
		plain.Close()
	}
	return err != nil || format != compress.None
}

// importStream unpacks the stream as what a root file system would become.
// If that turns out to be an archive of images, their parts lie in it ready
// to be read, and the stream had to be read only once.
func (s *Store) importStream(ctx context.Context, r io.Reader, name string, want v1.Platform, p Progress) (*api.Image, error) {
	t, err := s.readTar(ctx, r, p)
	if err != nil {
		return nil, err
	}
	defer t.w.abort()
	a := &archive{tree: t.tree, image: t.w.image}
	offers, err := a.offers()
	if err != nil {
		return nil, err
	}
	if offers != nil {
		return s.importArchive(ctx, a, offers, name, want, p)
	}
	if name == "" {
		return nil, api.Errorf(api.CodeInvalid, "a root file system has no name of its own").WithField("name").WithHint("give one with --name")
	}
	return s.adopt(ctx, t, rootImage{
		names: []string{name}, from: "import", platform: want, config: t.defaultConfig(),
	})
}

// tarRoot is a root file system that has been read and not published.
type tarRoot struct {
	w      *rootWriter
	tree   *rootfs.Tree
	diffID string
	size   int64
}

// readTar reads a possibly compressed tar stream into a new root. The caller
// aborts t.w.
func (s *Store) readTar(ctx context.Context, r io.Reader, p Progress) (t *tarRoot, err error) {
	w, err := s.newRoot()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.abort()
		}
	}()
	m := &meter{p: p, step: "unpacking"}
	plain, _, err := compress.NewReader(m.reader(r, 1<<62))
	if err != nil {
		return nil, rootfs.StreamError(err)
	}
	defer plain.Close()
	t = &tarRoot{w: w, tree: rootfs.NewTree()}
	sum := sha256.New()
	ahead := compress.NewAhead(plain, func(p []byte) { sum.Write(p); t.size += int64(len(p)) })
	defer ahead.Close()
	layer, err := rootfs.Read(ctx, ahead, rootfs.Options{
		Image: w.image, Budget: rootfs.NewBudget(int64(s.opts.MaxUnpacked)), Plain: true,
	})
	if err != nil {
		return nil, err
	}
	if layer.Empty() {
		return nil, api.Errorf(api.CodeInvalid, "the archive is empty")
	}
	t.diffID = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	s.warnDropped(t.diffID, layer.Dropped)
	return t, t.tree.Apply(layer)
}

// defaultConfig is how a root file system that says nothing about itself is
// run: as a system when it has an init, else with its shell.
func (t *tarRoot) defaultConfig() v1.Config {
	c := v1.Config{Env: []string{defaultPath}}
	init, at := t.tree.Lookup("sbin/init")
	sh, _ := t.tree.Lookup("bin/bash")
	switch {
	case init != nil && !isBusybox(at):
		c.Entrypoint, c.StopSignal = []string{"/sbin/init"}, stopSignal(at)
	case sh != nil:
		c.Cmd = []string{"/bin/bash"}
	default:
		c.Cmd = []string{"/bin/sh"}
	}
	return c
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// rootImage is what becomes of a tarRoot.
type rootImage struct {
	names    []string
	from     string
	platform v1.Platform
	config   v1.Config
}

// manifest describes the image as if it had come from a registry with its
// one layer, so that it has a digest like any other.
func (ri rootImage) manifest(diffID string, size int64) (*manifest.Image, error) {
	id, err := v1.NewHash(diffID)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(v1.ConfigFile{
		OS: ri.platform.OS, Architecture: ri.platform.Architecture, Variant: ri.platform.Variant,
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{id}},
		Config: ri.config,
	})
	if err != nil {
		return nil, err
	}
	return manifest.FromConfig(raw, []v1.Descriptor{{MediaType: types.OCIUncompressedLayer, Digest: id, Size: size}}, ri.platform)
}

// adopt publishes a root and records its image.
func (s *Store) adopt(ctx context.Context, t *tarRoot, ri rootImage) (*api.Image, error) {
	img, err := ri.manifest(t.diffID, t.size)
	if err != nil {
		return nil, err
	}
	// Not the name that the same bytes have as a layer: there, some names
	// are whiteouts.
	root := manifest.Digest([]byte("root " + t.diffID))
	unlock, err := s.making.lock(ctx, root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer s.hold(root)()
	if _, err := os.Stat(s.rootPath(root)); err != nil {
		if err := t.w.finish(t.tree, root, s.rootPath(root)); err != nil {
			return nil, err
		}
	}
	return s.record(img, root, source{names: ri.names, from: ri.from})
}

// file reads a small file of an archive's tree.
func (a *archive) file(name string, limit int64) ([]byte, error) {
	inode, _ := a.tree.Lookup(name)
	if inode == nil || !inode.FileMode().IsRegular() {
		return nil, api.Errorf(api.CodeCorrupt, "the archive has no %.200s", name)
	}
	if inode.Data.Size > limit {
		return nil, api.Errorf(api.CodeCorrupt, "%.200s has %d bytes; at most %d are accepted", name, inode.Data.Size, limit)
	}
	return io.ReadAll(a.image.Open(inode.Data))
}

// archive is an archive of images, unpacked.
type archive struct {
	tree  *rootfs.Tree
	image *erofs.Writer
}
