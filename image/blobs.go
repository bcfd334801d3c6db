package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/registry"
)

// blobs are the compressed layers that are being downloaded or were, for a
// pull that has not succeeded yet. A file under its digest's name has been
// verified. A layer that several pulls need at once is fetched once.
type blobs struct {
	dir, tmp string

	mu   sync.Mutex
	open map[string]*blob
	work sync.WaitGroup
}

// fetcher opens a blob at an offset, at its registry.
type fetcher func(ctx context.Context, offset int64) (io.ReadCloser, error)

// blob is one layer, complete or growing. Whoever holds it may read it from
// the beginning while it grows; the end is only seen once all of it has been
// verified.
type blob struct {
	digest string
	size   int64
	cancel context.CancelFunc
	file   *os.File
	final  string // path once verified
	tmp    string

	mu      sync.Mutex
	more    sync.Cond
	written int64
	done    bool // verified, and under its final name
	err     error

	holders int   // guarded by blobs.mu
	unused  bool  // a holder needs it no more; guarded by blobs.mu
	got     int64 // as written, for the goroutine that fills it alone
}

func newBlobs(dir, tmp string) *blobs {
	return &blobs{dir: dir, tmp: tmp, open: map[string]*blob{}}
}

// acquire returns the blob and begins to fetch it unless somebody has. Each
// holder must release it.
func (b *blobs) acquire(ctx context.Context, digest string, size int64, fetch fetcher) (*blob, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if bl, ok := b.open[digest]; ok && bl.failure() == nil {
		if bl.size != size {
			return nil, api.Errorf(api.CodeCorrupt, "layer %s: manifests disagree about its size", digest)
		}
		bl.holders++
		return bl, nil
	}
	bl := &blob{digest: digest, size: size, holders: 1, final: b.path(digest), tmp: b.tmp}
	bl.more.L = &bl.mu
	// The work belongs to all holders: it ends with the last, not the first.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	bl.cancel = cancel
	kept, err := os.Open(bl.final)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			cancel()
			return nil, err
		}
		if kept, err = os.CreateTemp(b.tmp, "blob-*"); err != nil {
			cancel()
			return nil, err
		}
	}
	bl.file = kept
	b.open[digest] = bl
	b.work.Go(func() {
		defer cancel()
		bl.finish(bl.fill(work, fetch))
	})
	return bl, nil
}

func (b *blobs) path(digest string) string {
	return filepath.Join(b.dir, strings.TrimPrefix(digest, "sha256:"))
}

// release gives a blob back. With unused, it is not kept for another try.
func (b *blobs) release(bl *blob, unused bool) {
	b.mu.Lock()
	bl.unused = bl.unused || unused
	bl.holders--
	if bl.holders > 0 {
		b.mu.Unlock()
		return
	}
	// A failed blob may have been replaced by a newer try.
	if b.open[bl.digest] == bl {
		delete(b.open, bl.digest)
	}
	remove := bl.unused
	b.mu.Unlock()

	bl.cancel()
	bl.mu.Lock()
	for !bl.done && bl.err == nil {
		bl.more.Wait()
	}
	bl.mu.Unlock()
	if remove && bl.done {
		_ = os.Remove(bl.final)
	}
	bl.file.Close()
}

// fill downloads what is missing and verifies all of it.
func (bl *blob) fill(ctx context.Context, fetch fetcher) error {
	if bl.file.Name() == bl.final {
		if err := bl.check(); err == nil {
			return nil
		}
		// It was damaged since: fetch it again.
		if err := os.Remove(bl.final); err != nil {
			return err
		}
		again, err := os.CreateTemp(bl.tmp, "blob-*")
		if err != nil {
			return err
		}
		bl.mu.Lock()
		bl.file.Close()
		bl.file = again
		bl.mu.Unlock()
	}
	h := sha256.New()
	for attempt := 0; ; attempt++ {
		before := bl.got
		err := bl.copy(ctx, fetch, h)
		if err == nil {
			break
		}
		if bl.got > before {
			attempt = 0 // it goes on, if slowly
		}
		if attempt >= registry.Attempts-1 || !registry.Transient(err) || ctx.Err() != nil {
			return err
		}
		if err := registry.Pause(ctx, attempt); err != nil {
			return err
		}
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != bl.digest {
		return api.Errorf(api.CodeCorrupt, "layer %s: what came has the digest %s", bl.digest, got).
			WithHint("the registry or something on the way changed it; try again or use another registry")
	}
	return os.Rename(bl.file.Name(), bl.final)
}

// check verifies a blob that an earlier pull left.
func (bl *blob) check() error {
	h := sha256.New()
	n, err := io.Copy(h, io.NewSectionReader(bl.file, 0, bl.size+1))
	if err == nil && (n != bl.size || "sha256:"+hex.EncodeToString(h.Sum(nil)) != bl.digest) {
		err = errors.New("damaged")
	}
	if err == nil {
		bl.advance(n)
	}
	return err
}

// copy appends what the registry sends from where the blob ends now.
func (bl *blob) copy(ctx context.Context, fetch fetcher, h hash.Hash) error {
	offset := bl.got
	if offset == bl.size {
		return nil
	}
	body, err := fetch(ctx, offset)
	if err != nil {
		if offset > 0 && registry.Gone(err) {
			return api.Errorf(api.CodeCorrupt, "layer %s: the registry has only %d of %d bytes", bl.digest, offset, bl.size)
		}
		return err
	}
	defer body.Close()
	buf := make([]byte, 256<<10)
	for offset < bl.size {
		n, err := body.Read(buf[:min(int64(len(buf)), bl.size-offset)])
		if n > 0 {
			if _, err := bl.file.WriteAt(buf[:n], offset); err != nil {
				return err
			}
			h.Write(buf[:n])
			offset += int64(n)
			bl.advance(int64(n))
		}
		if err == io.EOF && offset < bl.size {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

func (bl *blob) advance(n int64) {
	bl.got += n
	bl.mu.Lock()
	bl.written += n
	bl.mu.Unlock()
	bl.more.Broadcast()
}

// finish tells how it ended; by then what failed has left no file.
func (bl *blob) finish(err error) {
	if err != nil {
		_ = os.Remove(bl.file.Name())
	}
	bl.mu.Lock()
	bl.done, bl.err = err == nil, err
	bl.mu.Unlock()
	bl.more.Broadcast()
}

func (bl *blob) failure() error {
	bl.mu.Lock()
	defer bl.mu.Unlock()
	return bl.err
}

// reader reads the blob from the beginning, as it comes, until ctx ends.
func (bl *blob) reader(ctx context.Context) *blobReader {
	r := &blobReader{ctx: ctx, blob: bl}
	r.stop = context.AfterFunc(ctx, func() {
		// Under the lock, or a reader about to wait would miss it.
		bl.mu.Lock()
		defer bl.mu.Unlock()
		bl.more.Broadcast()
	})
	return r
}

type blobReader struct {
	ctx  context.Context
	blob *blob
	off  int64
	stop func() bool
}

func (r *blobReader) Read(p []byte) (int, error) {
	bl := r.blob
	bl.mu.Lock()
	for {
		if err := r.ctx.Err(); err != nil {
			bl.mu.Unlock()
			return 0, err
		}
		if bl.err != nil {
			bl.mu.Unlock()
			return 0, bl.err
		}
		if r.off < bl.written {
			break
		}
		if bl.done {
			bl.mu.Unlock()
			return 0, io.EOF
		}
		bl.more.Wait()
	}
	n := min(int64(len(p)), bl.written-r.off)
	f := bl.file
	bl.mu.Unlock()
	m, err := f.ReadAt(p[:n], r.off)
	r.off += int64(m)
	if err == io.EOF && m > 0 {
		err = nil
	}
	return m, err
}

func (r *blobReader) Close() error {
	r.stop()
	return nil
}
