// Package image brings images to this host and keeps them: from registries,
// archives, file trees and bootstrap tools, each merged into one read-only
// EROFS file, addressed by the digest of its manifest; and disks and media of
// systems of their own (package disk), each a raw file with holes.
//
// The store is a directory with one owner:
//
//	roots/HEX.erofs   merged file trees, named after the layers they are made of
//	disks/HEX.raw     disks and media, named after their content
//	images/HEX.json   one record per image: configuration, and which root or disk
//	names.json        what each name points to
//	blobs/HEX         verified layers of pulls that haven't succeeded yet
//	tmp/              work in progress; emptied by Open
//
// A file in it is either complete and verified or it isn't there under its
// name. A pull fetches and unpacks its layers at the same time, straight
// into the EROFS file (see package rootfs), and forgets them afterwards. All
// methods may be called at the same time; a second pull of the same image
// waits for the first and shares its work, and so do pulls that need the same
// layer. Archives and manifests are hostile input: they are bounded, verified
// and never written to a path they choose.
//
// The image named base is always there when the store was given a busybox:
// it is built on Open, from nothing else.
package image

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/registry"
)

// Progress is told how far long work has come: bytes of the compressed layers
// while they are fetched. It must not block.
type Progress func(step string, done, total int64)

// Options say where a store lives and what it may use.
type Options struct {
	Dir          string    // the store; made if absent
	Busybox      string    // static busybox for the built-in base image; empty: no base
	DockerConfig string    // Docker's config.json or its directory; empty: as Docker finds it
	MaxUnpacked  api.Bytes // of one image; 64 GiB if zero
	MaxDisk      api.Bytes // that the guest sees; 2 TiB if zero
	Log          *slog.Logger
}

const (
	defaultMaxUnpacked = 64 * api.GiB
	defaultMaxDisk     = 2048 * api.GiB
)

// Store is the images of this host.
type Store struct {
	opts  Options
	log   *slog.Logger
	lock  *os.File
	pool  *registry.Pool
	blobs *blobs

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	closed  sync.Once
	work    sync.WaitGroup
	flights flights
	making  keyed // roots and disks being made, by name
	baseErr error // why there is no base image

	mu     sync.RWMutex // guards what follows, and the files it mirrors
	images map[string]*record
	names  map[string]string // key of a complete name to digest
	held   map[string]int    // roots and disks that work counts on, beside those of records
}

// Open opens the store, removes what a crash left half done, and makes the
// base image.
func Open(opts Options) (*Store, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.MaxUnpacked == 0 {
		opts.MaxUnpacked = defaultMaxUnpacked
	}
	if opts.MaxDisk == 0 {
		opts.MaxDisk = defaultMaxDisk
	}
	s := &Store{
		opts:   opts,
		log:    opts.Log,
		pool:   registry.NewPool(opts.DockerConfig),
		images: map[string]*record{},
		names:  map[string]string{},
		held:   map[string]int{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("open image store %s: %w", opts.Dir, err)
	}
	return s, nil
}

func (s *Store) open() error {
	// Images may hold what not everybody on the host should read.
	if err := os.MkdirAll(s.opts.Dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(s.dir(fileLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return api.Errorf(api.CodeBusy, "another process has it open: %w", err).
			WithHint("give each daemon a data directory of its own")
	}
	if err := os.RemoveAll(s.dir(dirTmp)); err != nil {
		return err
	}
	for _, d := range []string{dirRoots, dirDisks, dirImages, dirBlobs, dirTmp} {
		if err := os.MkdirAll(s.dir(d), 0o700); err != nil {
			return err
		}
	}
	s.blobs = newBlobs(s.dir(dirBlobs), s.dir(dirTmp))
	if err := s.load(); err != nil {
		return err
	}
	if s.baseErr = s.makeBase(s.ctx); s.baseErr != nil {
		s.log.Warn("no base image", "error", s.baseErr)
	}
	return nil
}

// Close cancels work in progress and waits until it has ended.
func (s *Store) Close() error {
	s.mu.Lock() // began must not add to what is being waited for
	s.cancel()
	s.mu.Unlock()
	s.work.Wait()
	if s.blobs != nil {
		s.blobs.work.Wait()
	}
	s.pool.CloseIdle()
	s.closed.Do(func() {
		if s.lock != nil {
			s.lock.Close() // gives the store up
		}
	})
	return nil
}

// EROFS is the path of an image's file; empty if there is no such image.
func (s *Store) EROFS(digest string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	rec := s.images[digest]
	if rec == nil || rec.Disk != "" {
		return ""
	}
	return s.absolute(rec)
}

// Disk is the path of the raw file of an image of type disk or iso; empty if
// there is no such image.
func (s *Store) Disk(digest string) string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	rec := s.images[digest]
	if rec == nil || rec.Disk == "" {
		return ""
	}
	return s.absolute(rec)
}

func (s *Store) absolute(rec *record) string {
	_, path := s.content(rec)
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	return path
}

// began ties a caller's work to the store's life. end must be called.
func (s *Store) began(ctx context.Context) (_ context.Context, end func(), err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.ctx.Err() != nil {
		return nil, nil, api.Errorf(api.CodeUnavailable, "the image store is closed")
	}
	s.work.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel(); s.work.Done() }, nil
}
