package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/spf13/cobra"
)

// noticeable is how long a transfer lasts before its progress is shown.
const noticeable = time.Second

func (a *app) imageImportCmd() *cobra.Command {
	var name, format string
	formats := []string{"raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "ova", "iso"}
	cmd := &cobra.Command{
		Use:   "import FILE [NAME]",
		Short: "Make an image of an archive or a disk",
		Long:  "FILE (- for standard input) is an OCI layout or a docker-save archive, the tarball of a root file system, a disk of a system of its own (qcow2, raw, vmdk, vhdx, vhd, vdi, or the one in an ova), or an installer's medium (iso); plain or compressed by gzip, xz or zstd. Which it is, its content tells. A disk must be whole in itself: one with a backing file or with extents in other files is refused. The name and the digest of the image are printed.",
		Example: `  cleave image import rootfs.tar.zst mine:1
  docker save app:2 | cleave image import -
  cleave image import debian-12-generic-amd64.qcow2 debian-disk
  cleave image import --format raw partition.img data`,
		Args: args(1, 2, "FILE [NAME]"),
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the image, as NAME (default: the archive's own)")
	cmd.Flags().StringVar(&format, "format", "", "format of a disk, needed only for a raw one without partitions")
	named(cmd.Flags(), "format", "FORMAT")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 2 && name != "" && name != args[1]:
			return usagef("two names are given: %s and %s", args[1], name)
		case len(args) == 2:
			name = args[1]
		}
		archive, size := a.in, int64(0)
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if fi, err := f.Stat(); err == nil {
				size = fi.Size()
			}
			archive = f
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		rep := progress.New(a.err, noticeable)
		defer rep.Close()
		title := "import " + filepath.Base(args[0])
		sent := newEnding(rep.Reader(archive, "import", progress.State{Title: title, Total: size}))
		made := rep.Repeat(sent.ended, "import", progress.State{Title: title, Step: "making the image"})
		img, err := c.ImportImage(cmd.Context(), name, format, sent)
		made()
		if err != nil {
			return err
		}
		rep.Close()
		for _, n := range img.Names {
			fmt.Fprintln(a.out.W, familiar(n))
		}
		_, err = fmt.Fprintln(a.out.W, img.Digest)
		return err
	}
	return cmd
}

// ending is a reader that tells when it has come to its end.
type ending struct {
	io.Reader
	once  sync.Once
	ended chan struct{}
}

func newEnding(r io.Reader) *ending { return &ending{Reader: r, ended: make(chan struct{})} }

func (e *ending) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err != nil {
		e.once.Do(func() { close(e.ended) })
	}
	return n, err
}

func (a *app) imageExportCmd() *cobra.Command {
	var format, file string
	formats := []string{"oci", "tar", "qcow2", "raw", "ova"}
	cmd := &cobra.Command{
		Use:   "export IMAGE",
		Short: "Write an image to an archive or a disk file",
		Example: `  cleave image export debian:bookworm --file debian.tar
  cleave image export debian-disk --format ova --file debian.ova
  cleave image export mine --format tar | zstd >rootfs.tar.zst`,
		Args:              args(1, 1, "IMAGE"),
		ValidArgsFunction: a.complete(1, imageNames),
	}
	fs := cmd.Flags()
	fs.StringVar(&format, "format", "", "oci: an OCI layout, to import elsewhere; tar: the root file system alone; for a disk qcow2, raw or ova (default: oci, of a disk qcow2)")
	named(fs, "format", "oci|tar|qcow2|raw|ova")
	fs.StringVarP(&file, "file", "f", "", "write to a file instead of standard output")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if file == "" && a.out.Width > 0 {
			return usagef("an archive is nothing for a terminal; write it to a file with --file")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		r, err := c.ExportImage(cmd.Context(), args[0], format)
		if err != nil {
			return err
		}
		return a.saveExport(args[0], file, r)
	}
	return cmd
}

// saveExport writes what the daemon exports of a thing to a file, or to
// standard output, and closes it.
func (a *app) saveExport(name, file string, r io.ReadCloser) error {
	defer r.Close()
	rep := progress.New(a.err, noticeable)
	defer rep.Close()
	from := rep.Reader(r, "export", progress.State{Title: "export " + name})
	if file == "" {
		_, err := io.Copy(a.out.W, from)
		return err
	}
	return writeFile(file, from)
}

// writeFile writes a file whole or not at all.
func writeFile(path string, from io.Reader) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already when all went well
	defer tmp.Close()
	w := bufio.NewWriterSize(tmp, 1<<20)
	if _, err := io.Copy(w, from); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := tmp.Chmod(0o644); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (a *app) imageBuildCmd() *cobra.Command {
	var build api.ImageBuild
	cmd := &cobra.Command{
		Use:   "build DISTRIBUTION:RELEASE",
		Short: "Make an image with the distribution's own bootstrap tool",
		Example: `  cleave image build debian:bookworm
  cleave image build debian:bookworm --system --include nginx,vim --name lab`,
		Args:              args(1, 1, "DISTRIBUTION:RELEASE"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&build.Include, "include", nil, "further packages, separated by commas")
	named(fs, "include", "PACKAGES")
	fs.BoolVar(&build.System, "system", false, "with an init system as its entry point")
	fs.StringVar(&build.Name, "name", "", "name of the image (default: DISTRIBUTION:RELEASE)")
	fs.StringVar(&build.Mirror, "mirror", "", "package mirror (default: the host's own sources)")
	named(fs, "mirror", "URL")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		build.Base = args[0]
		c, err := a.client()
		if err != nil {
			return err
		}
		op, err := a.one(cmd.Context(), func(ctx context.Context) (*api.Operation, error) { return c.BuildImage(ctx, build) })
		return a.printResult(op, err)
	}
	return cmd
}

func (a *app) imagePruneCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "prune",
		Short: "Delete what no name and no instance needs",
		Args:  args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, err := c.PruneImages(cmd.Context())
			if err != nil {
				return err
			}
			for _, d := range p.Digests {
				fmt.Fprintln(a.out.W, d)
			}
			a.note("%s freed", p.Freed)
			return nil
		},
	}
}
