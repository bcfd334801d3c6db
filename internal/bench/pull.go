package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/client"
)

var filterAll = client.Filter{}

// pullSize is about what a distribution's smallest useful image unpacks to.
const pullSize = 120 << 20

// pullRounds is less than for what takes a few milliseconds.
const pullRounds = 5

// pull fetches an image of one layer from a registry on loopback, and
// compares with decompressing that layer in memory by the same library.
func (b *bench) pull(ctx context.Context) error {
	packed, size, err := packedFiles(pullSize)
	if err != nil {
		return err
	}
	ref, stop, err := serveImage(ctx, packed)
	if err != nil {
		return err
	}
	defer stop()
	var pulls, bare samples
	for range min(pullRounds, b.rounds) {
		begin := time.Now()
		if err := gunzip(packed); err != nil {
			return err
		}
		bare = append(bare, time.Since(begin))
		begin = time.Now()
		op, err := b.host.client.PullImage(ctx, api.ImagePull{Reference: ref})
		if err := b.host.wait(ctx, op, err); err != nil {
			return err
		}
		pulls = append(pulls, time.Since(begin))
		if err := b.host.client.DeleteImage(ctx, ref, false); err != nil {
			return err
		}
		if _, err := b.host.client.PruneImages(ctx); err != nil {
			return err
		}
	}
	rate := func(s samples) string {
		return fmt.Sprintf("%s, %.0f MB/s", ms(s.p50()), float64(size)/1e6/s.p50().Seconds())
	}
	ratio := float64(pulls.p50()) / float64(bare.p50())
	facts(os.Stdout, fmt.Sprintf("Pull of an image of %d MB (%d MB compressed) from loopback", size/1e6, len(packed)/1e6),
		fact{what: "pull: fetched, verified, unpacked, durable", value: rate(pulls)},
		fact{what: "gunzip of its layer in memory", value: rate(bare)},
		fact{what: "pull against gunzip", value: fmt.Sprintf("%.2fx", ratio), target: "<= 1.5x", ok: ratio <= 1.5},
	)
	return nil
}

// packedFiles makes a layer of programs, libraries and texts of this host.
func packedFiles(n int) (packed []byte, size int64, err error) {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	count := &counter{w: z}
	w := tar.NewWriter(count)
	for _, root := range []string{"/usr/bin", "/usr/lib", "/usr/share"} {
		start := count.n
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || count.n-start > int64(n/3) {
				return fs.SkipAll
			}
			info, err := d.Info()
			if err != nil || !info.Mode().IsRegular() || info.Size() > 16<<20 {
				return nil //nolint:nilerr // it has gone; another file will do
			}
			body, err := os.ReadFile(path)
			if err != nil {
				return nil //nolint:nilerr // as above
			}
			h := &tar.Header{Name: path[1:], Mode: int64(info.Mode().Perm()), Size: int64(len(body)), ModTime: info.ModTime()}
			if err := w.WriteHeader(h); err != nil {
				return err
			}
			_, err = w.Write(body)
			return err
		})
		if err != nil {
			return nil, 0, err
		}
	}
	err = errors.Join(w.Close(), z.Close())
	return out.Bytes(), count.n, err
}

// counter counts what is written through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func gunzip(packed []byte) error {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	// Without WriteTo, which a reader of a stream that must be verified
	// can't use either.
	_, err = io.Copy(io.Discard, struct{ io.Reader }{z})
	return err
}

// serveImage offers an image of one layer on loopback until stop is called.
func serveImage(ctx context.Context, layer []byte) (ref string, stop func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{Handler: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	stop = func() { srv.Close(); <-done }
	ref = l.Addr().String() + "/bench/debian:size"
	if err := push(ctx, ref, layer); err != nil {
		stop()
		return "", nil, err
	}
	return ref, stop, nil
}

func push(ctx context.Context, ref string, packed []byte) error {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(packed)), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(to, img, remote.WithContext(ctx))
}
