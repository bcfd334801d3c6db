package image

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/compress"
	"github.com/cleave-project/cleave/image/disk"
	"github.com/cleave-project/cleave/image/manifest"
	"github.com/cleave-project/cleave/internal/sparse"
)

// diskManifest is what the digest of a disk's image is made of: the same disk
// has the same one, whatever it came in.
type diskManifest struct {
	Type    string `json:"type"`
	Size    int64  `json:"size"`
	Content string `json:"content"` // sparse.Hash of the raw file
}

// ImportDisk brings a disk or an installer's medium to this host, converted
// to a raw file. Format is one of disk.Formats; empty has it found out. A
// stream may be compressed with gzip, xz or zstd. A regular file in r is read
// where it is, sharing its blocks when it's a raw disk and the file system
// can do that.
func (s *Store) ImportDisk(ctx context.Context, r io.Reader, name, format string, p Progress) (*api.Image, error) {
	ctx, end, err := s.began(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	img, err := s.importDisk(ctx, r, name, format, p)
	if err != nil {
		return nil, within("import disk", err)
	}
	return img, nil
}

func (s *Store) importDisk(ctx context.Context, r io.Reader, name, format string, p Progress) (*api.Image, error) {
	if format != "" && !slices.Contains(disk.Formats, format) {
		return nil, api.Errorf(api.CodeInvalid, "%.20q is no format of disks", format).WithField("format").
			WithHint("choose one of %s", strings.Join(disk.Formats, ", "))
	}
	if name == "" {
		return nil, api.Errorf(api.CodeInvalid, "a disk has no name of its own").WithField("name").WithHint("give one with --name")
	}
	complete, err := tagName(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	in := &incoming{s: s, room: s.watchRoom(cancel), p: p}
	defer in.close()
	if err = in.receive(ctx, r, format); err == nil {
		err = in.convert(ctx, format)
	}
	if err == nil {
		err = in.sum(ctx)
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			err = cause
		}
		return nil, err
	}
	return s.adoptDisk(ctx, in, complete)
}

// incoming is a disk on its way into the store.
type incoming struct {
	s    *Store
	room func()
	p    Progress

	file   *os.File // as it came, then raw
	size   int64
	header disk.Header
	digest string // of the raw file, once known
}

func (in *incoming) close() {
	if in.file != nil {
		in.file.Close()
		_ = os.Remove(in.file.Name()) // gone already when it has its name
	}
}

// temp makes the next file and gives up the one before.
func (in *incoming) temp() (old, fresh *os.File, err error) {
	f, err := os.CreateTemp(in.s.dir(dirTmp), "disk-*")
	if err != nil {
		return nil, nil, err
	}
	old, in.file = in.file, f
	return old, f, nil
}

// receive takes the source to a file of ours. What looks raw is summed up on
// the way.
func (in *incoming) receive(ctx context.Context, r io.Reader, format string) error {
	_, f, err := in.temp()
	if err != nil {
		return err
	}
	if src, ok := r.(*os.File); ok {
		head := make([]byte, 32)
		n, _ := src.ReadAt(head, 0)
		if st, err := src.Stat(); err == nil && st.Mode().IsRegular() && !isPacked(head[:n]) {
			in.size = st.Size()
			if in.size > int64(in.s.opts.MaxDisk) {
				return in.s.tooLarge()
			}
			return sparse.Copy(ctx, f, src, in.report("reading"))
		}
	}
	plain, _, err := compress.NewReader(r)
	if err != nil {
		return err
	}
	defer plain.Close()
	b := bufio.NewReaderSize(plain, disk.HeadSize)
	head, err := b.Peek(disk.HeadSize)
	if err != nil && err != io.EOF {
		return err
	}
	var h *sparse.Hash
	if kind := cmp.Or(format, disk.Detect(head)); kind == "raw" || kind == "iso" {
		h = new(sparse.Hash)
	}
	report := in.report("reading")
	in.size, err = sparse.Fill(ctx, f, b, h, int64(in.s.opts.MaxDisk), func(done int64) { report(done, 0) })
	if errors.Is(err, sparse.ErrTooLong) {
		return in.s.tooLarge()
	}
	if err == nil && h != nil {
		in.digest = h.Sum(in.size)
	}
	return err
}

func (s *Store) tooLarge() error {
	return api.Errorf(api.CodeInvalid, "it has more than %v", s.opts.MaxDisk)
}

// report returns a progress function that also looks at the room left.
func (in *incoming) report(step string) func(done, total int64) {
	next := time.Time{}
	return func(done, total int64) {
		now := time.Now()
		if now.Before(next) && done != total {
			return
		}
		next = now.Add(reportEvery)
		in.room()
		in.p.report(step, done, total)
	}
}

// convert makes the file raw, if it isn't.
func (in *incoming) convert(ctx context.Context, format string) error {
	in.p.report("checking", 0, 0)
	h, err := disk.Check(ctx, in.file, in.size, format)
	if err != nil {
		return err
	}
	if h.Size > int64(in.s.opts.MaxDisk) {
		return in.s.tooLarge()
	}
	in.header = h
	switch {
	case h.Raw() && h.Offset == 0 && h.Length == in.size:
		return nil
	case h.Raw() && h.Offset == 0: // a footer follows
		in.digest = ""
		return in.file.Truncate(h.Length)
	}
	in.digest = ""
	old, f, err := in.temp()
	if err != nil {
		return err
	}
	defer os.Remove(old.Name())
	defer old.Close()
	report := in.report("converting")
	if h.Raw() {
		_, err := sparse.Fill(ctx, f, io.NewSectionReader(old, h.Offset, h.Length), nil, h.Length, func(done int64) { report(done, h.Length) })
		return err
	}
	cell, err := os.MkdirTemp(in.s.dir(dirTmp), "cell-*")
	if err != nil {
		return err
	}
	defer os.Remove(cell)
	return disk.Convert(ctx, f, old, h, cell, func(percent float64) { report(int64(percent*float64(h.Size)/100), h.Size) })
}

// sum finds out what the raw file is called by.
func (in *incoming) sum(ctx context.Context) (err error) {
	if in.digest == "" {
		in.digest, err = sparse.Digest(ctx, in.file, in.report("verifying"))
	}
	return err
}

// adoptDisk publishes a disk and records its image.
func (s *Store) adoptDisk(ctx context.Context, in *incoming, name string) (*api.Image, error) {
	st, err := in.file.Stat()
	if err != nil {
		return nil, err
	}
	kind := api.ImageDisk
	if in.header.Format == "iso" {
		kind = api.ImageISO
	}
	firmware := in.header.Firmware
	if kind == api.ImageDisk && firmware == "" {
		if firmware, err = disk.Firmware(in.file, st.Size()); err != nil {
			return nil, err
		}
	}
	doc, err := json.Marshal(diskManifest{Type: kind, Size: st.Size(), Content: in.digest})
	if err != nil {
		return nil, err
	}
	unlock, err := s.making.lock(ctx, in.digest)
	if err != nil {
		return nil, err
	}
	defer unlock()
	defer s.hold(in.digest)()
	path := s.diskPath(in.digest)
	_, err = os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		in.p.report("writing", 0, 0)
		err = publish(in.file, path)
	}
	if err == nil {
		st, err = os.Stat(path)
	}
	if err != nil {
		return nil, err
	}
	return s.keep(&record{
		Image: api.Image{
			Digest: manifest.Digest(doc), Created: time.Now().UTC().Truncate(time.Second), Size: allocated(st),
			Source: "import", Type: kind, DiskSize: api.Bytes(st.Size()), Firmware: firmware,
		},
		Disk: in.digest, Config: doc,
	}, name)
}

// watchRoom returns a function that ends work, by cancel, when the store's
// disk is about to be full: others live there too, the daemon's own records
// among them.
func (s *Store) watchRoom(cancel context.CancelCauseFunc) func() {
	return func() {
		var st unix.Statfs_t
		if unix.Statfs(s.opts.Dir, &st) != nil {
			return
		}
		size, free := st.Blocks*uint64(st.Bsize), st.Bavail*uint64(st.Bsize)
		if free < min(size/20, uint64(api.GiB)) {
			cancel(&fs.PathError{Op: "write", Path: filepath.Clean(s.opts.Dir), Err: syscall.ENOSPC})
		}
	}
}

// exportDisk writes an image of type disk or iso.
func (s *Store) exportDisk(ctx context.Context, f *os.File, img *api.Image, format string, w io.Writer) error {
	if img.Type == api.ImageISO {
		if format != "" && format != "raw" {
			return api.Errorf(api.CodeInvalid, "a medium can't be exported as %s", format).WithField("format").WithHint("choose raw")
		}
		format = "raw"
	}
	name := "disk"
	if len(img.Names) > 0 {
		name = img.Names[0]
		name = name[strings.LastIndexByte(name, '/')+1:]
	}
	return disk.Export(ctx, f, disk.Machine{Name: name, CPUs: 1, Memory: api.GiB, Firmware: img.Firmware},
		cmp.Or(format, disk.ExportFormats[0]), s.dir(dirTmp), w)
}

// ExportDisk writes the raw disk from, which nobody writes to meanwhile, in
// one of disk.ExportFormats.
func (s *Store) ExportDisk(ctx context.Context, from *os.File, m disk.Machine, format string, w io.Writer) error {
	ctx, end, err := s.began(ctx)
	if err != nil {
		return err
	}
	defer end()
	return within("export disk of "+m.Name, disk.Export(ctx, from, m, cmp.Or(format, disk.ExportFormats[0]), s.dir(dirTmp), w))
}
