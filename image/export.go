package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	goerofs "github.com/erofs/go-erofs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/manifest"
)

// Export writes an image as an archive: "oci", an OCI layout in a tar file
// whose one layer is made from the merged tree, or "tar", the tree itself.
// The digest of what "oci" writes is not that of the image it came from:
// the layers aren't kept. Disks are written in one of disk.ExportFormats,
// media as raw. An empty format is the first that fits.
func (s *Store) Export(ctx context.Context, ref, format string, w io.Writer) error {
	ctx, end, err := s.began(ctx)
	if err != nil {
		return err
	}
	defer end()
	s.mu.RLock()
	digest, err := s.find(ref, "")
	if err != nil {
		s.mu.RUnlock()
		return err
	}
	rec := s.images[digest]
	view := s.view(rec)
	if rec.Disk != "" {
		f, err := os.Open(s.diskPath(rec.Disk))
		s.mu.RUnlock()
		if err != nil {
			return within("export image "+ref, err)
		}
		defer f.Close()
		return within("export image "+ref, s.exportDisk(ctx, f, view, format, w))
	}
	// Open before the lock is given up: a file that is deleted stays readable.
	root, err := openRoot(s.rootPath(rec.Root))
	s.mu.RUnlock()
	if err != nil {
		return within("export image "+ref, err)
	}
	defer root.Close()
	switch format {
	case "tar":
		err = root.writeTar(ctx, w)
	case "oci", "":
		err = s.exportOCI(ctx, root, rec, view, w)
	default:
		err = api.Errorf(api.CodeInvalid, "%.20q is no format", format).WithField("format").WithHint("choose oci or tar: it is a root file system, and no disk")
	}
	if err != nil {
		return within("export image "+ref, err)
	}
	return nil
}

// writeTar writes the whole tree in PAX format, sorted by path, each inode's
// further names as hard links.
func (r *rootReader) writeTar(ctx context.Context, w io.Writer) error {
	tw := tar.NewWriter(w)
	seen := map[int64]string{}
	buf := make([]byte, 256<<10)
	err := fs.WalkDir(r.FS, ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := r.header(name, info, seen)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(h); err != nil || h.Size == 0 {
			return err
		}
		f, err := r.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{tw}, f, buf)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// aclNames repairs what the reader makes of attributes whose prefix is their
// whole name.
var aclNames = map[string]string{
	"system.posix_acl_access.":  "system.posix_acl_access",
	"system.posix_acl_default.": "system.posix_acl_default",
}

func (r *rootReader) header(name string, info fs.FileInfo, seen map[int64]string) (*tar.Header, error) {
	st, ok := info.Sys().(*goerofs.Stat)
	if !ok {
		return nil, fmt.Errorf("%s: no EROFS inode", name)
	}
	h := &tar.Header{
		Format: tar.FormatPAX, Name: name,
		Uid: int(st.UID), Gid: int(st.GID),
		ModTime: time.Unix(int64(st.Mtime), int64(st.MtimeNs)),
	}
	mode := st.Mode // info.Mode lacks the bits beyond permissions
	h.Mode = int64(mode.Perm())
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&m != 0 {
			h.Mode |= bit
		}
	}
	for attr, value := range st.Xattrs {
		if fixed, ok := aclNames[attr]; ok {
			attr = fixed
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+attr] = value
	}
	if first, ok := seen[st.Ino]; ok && !mode.IsDir() {
		h.Typeflag, h.Linkname, h.PAXRecords = tar.TypeLink, first, nil
		return h, nil
	}
	seen[st.Ino] = name
	switch mode.Type() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeSymlink:
		target, err := fs.ReadLink(r.FS, name)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	default:
		return nil, fmt.Errorf("%s: a root has no %v", name, mode.Type())
	}
	return h, nil
}

// exportOCI writes the layer to a file first: its digest and size come
// before it in the archive.
func (s *Store) exportOCI(ctx context.Context, root *rootReader, rec *record, view *api.Image, w io.Writer) error {
	tmp, err := os.CreateTemp(s.dir(dirTmp), "export-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	packed, plain := sha256.New(), sha256.New()
	zw, err := gzip.NewWriterLevel(io.MultiWriter(tmp, packed), gzip.BestSpeed)
	if err != nil {
		return err
	}
	err = root.writeTar(ctx, io.MultiWriter(zw, plain))
	if cerr := zw.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	size, err := tmp.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	docs, err := ociDocuments(rec, view, sumHash(packed), sumHash(plain), size)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, d := range docs {
		if err := addFile(tw, d.name, int64(len(d.body)), d.body); err != nil {
			return err
		}
	}
	if err := addFile(tw, blobPath(sumHash(packed).String()), size, nil); err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if n, err := io.Copy(tw, tmp); err != nil || n != size {
		return errors.Join(err, tw.Flush())
	}
	return tw.Close()
}

type document struct {
	name string
	body []byte
}

// ociDocuments are all files of the layout but the layer (OCI image-spec
// image-layout.md).
func ociDocuments(rec *record, view *api.Image, packed, plain v1.Hash, size int64) ([]document, error) {
	var config v1.ConfigFile
	if err := json.Unmarshal(rec.Config, &config); err != nil {
		return nil, err
	}
	config.RootFS, config.History = v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{plain}}, nil
	var docs []document
	add := func(v any) (v1.Descriptor, error) {
		body, err := json.Marshal(v)
		if err != nil {
			return v1.Descriptor{}, err
		}
		h, err := v1.NewHash(manifest.Digest(body))
		docs = append(docs, document{blobPath(h.String()), body})
		return v1.Descriptor{Digest: h, Size: int64(len(body))}, err
	}
	c, err := add(config)
	if err != nil {
		return nil, err
	}
	c.MediaType = types.OCIConfigJSON
	m, err := add(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: c,
		Layers: []v1.Descriptor{{MediaType: types.OCILayer, Digest: packed, Size: size}},
	})
	if err != nil {
		return nil, err
	}
	m.MediaType, m.Platform = types.OCIManifestSchema1, config.Platform()
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, name := range view.Names {
		m.Annotations = map[string]string{annotationRef: name, annotationName: name}
		index.Manifests = append(index.Manifests, m)
	}
	if len(index.Manifests) == 0 {
		index.Manifests = append(index.Manifests, m)
	}
	body, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return append([]document{
		{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", body},
	}, docs...), nil
}

func addFile(w *tar.Writer, name string, size int64, body []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Clean(name), Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

func sumHash(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}
