package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/cli/progress"
	"github.com/cleave-project/cleave/cli/transfer"
	"github.com/spf13/cobra"
)

func (a *app) cpCmd() *cobra.Command {
	var owner bool
	cmd := &cobra.Command{
		Use:   "cp SOURCE TARGET",
		Short: "Copy files to, from and between running instances",
		Long: `One side at least is NAME:PATH. A directory is copied with all that is in it; SOURCE/. copies only what is in it. Where TARGET is a directory, the copy goes into it; else TARGET is the copy's name. Symbolic links are copied as they are.

- stands for a tar archive: on standard input as SOURCE, extracted below the directory TARGET; on standard output as TARGET.

A local name with a colon is written with a slash before it: ./a:b.`,
		Example: `  cleave cp index.html web:/srv/
  cleave cp web:/var/log ./log
  cleave cp web:/srv/. other:/srv
  cleave cp web:/etc - | tar t`,
		Args:              args(2, 2, "SOURCE TARGET"),
		ValidArgsFunction: a.completeCopy,
	}
	cmd.Flags().BoolVarP(&owner, "archive", "a", false, "keep numeric owners (else: the guest's root, and you)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := a.client(); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		rep := progress.New(a.err, noticeable)
		defer rep.Close()
		c := &copying{app: a, rep: rep, from: parsePlace(args[0]), to: parsePlace(args[1]), owner: owner}
		left, err := c.run(ctx)
		rep.Close()
		for _, name := range left {
			a.note("left out %s: not a file, directory or link", name)
		}
		if ctx.Err() != nil {
			return context.Canceled
		}
		return err
	}
	return cmd
}

// place is one side of a copy.
type place struct {
	guest string // empty: here
	path  string // absolute in a guest; - for an archive here
}

// parsePlace takes what stands before the first colon for an instance, when
// it can be the name of one.
func parsePlace(s string) place {
	name, p, ok := strings.Cut(s, ":")
	if !ok || api.ValidateName("instance", name) != nil {
		return place{path: s}
	}
	// Cleaned, but "x/" and "x/." keep what they say.
	tail := ""
	switch {
	case strings.HasSuffix(p, "/.") || p == ".":
		tail = "/."
	case strings.HasSuffix(p, "/"):
		tail = "/"
	}
	if p = path.Join("/", p); p != "/" {
		p += tail
	}
	return place{guest: name, path: p}
}

func (p place) archive() bool { return p.guest == "" && p.path == "-" }

func (p place) String() string {
	if p.guest != "" {
		return p.guest + ":" + p.path
	}
	return p.path
}

// contents tells whether only what is in a directory is meant.
func (p place) contents() bool {
	return strings.HasSuffix(p.path, "/.") || p.path == "." || p.path == "/"
}

// base is the name that a copy gets in a directory; "." for its contents.
func (p place) base() string {
	if p.contents() {
		return "."
	}
	return path.Base(p.path)
}

// copying is one run of cp.
type copying struct {
	app      *app
	rep      *progress.Reporter
	from, to place
	owner    bool
	size     int64 // of what is copied; 0 while unknown
}

func (c *copying) run(ctx context.Context) (left []string, err error) {
	switch from, to := c.from, c.to; {
	case from.guest == "" && to.guest == "":
		return nil, usagef("neither side is in an instance; write NAME:PATH")
	case from.archive():
		return nil, c.app.daemon.Put(ctx, to.guest, to.path, c.count(c.app.in))
	case to.archive() && c.app.out.Width > 0:
		return nil, usagef("an archive is nothing for a terminal; send it to a file or a program")
	case from.guest == "":
		return c.in(ctx)
	}
	r, err := c.app.daemon.Get(ctx, c.from.guest, c.from.path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	switch {
	case c.to.archive():
		_, err = io.Copy(c.app.out.W, c.count(r))
		return nil, err
	case c.to.guest == "":
		return c.out(c.count(r))
	}
	return nil, c.across(ctx, c.count(r))
}

// count shows the progress of what is read.
func (c *copying) count(r io.Reader) io.Reader {
	return c.rep.Reader(r, "copy", progress.State{Title: "copy " + c.from.String(), Total: c.size})
}

// in copies from here into a guest.
func (c *copying) in(ctx context.Context) ([]string, error) {
	source := filepath.Clean(c.from.path)
	look := os.Lstat
	if strings.HasSuffix(c.from.path, "/") || c.from.contents() {
		look = os.Stat
		if resolved, err := filepath.EvalSymlinks(source); err == nil {
			source = resolved
		}
	}
	fi, err := look(source)
	if err != nil {
		return nil, err
	}
	if fi.Mode().IsRegular() {
		c.size = fi.Size()
	}
	if c.from.contents() && !fi.IsDir() {
		return nil, api.Errorf(api.CodeInvalid, "%s is no directory", c.from.path)
	}
	from := c.from
	if !from.contents() {
		from.path = filepath.ToSlash(filepath.Clean(c.from.path))
		if abs, err := filepath.Abs(from.path); err == nil {
			from.path = abs // for a base name of ".."
		}
	}
	dir, name, err := c.target(ctx, from.base(), fi.IsDir())
	if err != nil {
		return nil, err
	}
	return c.put(ctx, dir, func(w io.Writer) ([]string, error) { return transfer.Pack(w, source, name, c.owner) })
}

// across copies from one guest into another.
func (c *copying) across(ctx context.Context, r io.Reader) error {
	// Whether the source is a directory isn't known before its first
	// header; the guest at the other end refuses what doesn't fit.
	dir, name, err := c.target(ctx, c.from.base(), true)
	if err != nil {
		return err
	}
	_, err = c.put(ctx, dir, func(w io.Writer) ([]string, error) { return nil, transfer.Rename(w, r, topOf(c.from), name) })
	return err
}

// topOf is how the names begin in the archive of a guest's path.
func topOf(p place) string { return p.base() }

// put streams an archive that write makes into the target guest.
func (c *copying) put(ctx context.Context, dir string, write func(io.Writer) ([]string, error)) (left []string, err error) {
	pr, pw := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		l, err := write(pw)
		left = l
		pw.CloseWithError(err)
		packed <- err
	}()
	err = c.app.daemon.Put(ctx, c.to.guest, dir, c.count(pr))
	pr.CloseWithError(io.ErrClosedPipe)
	// What can't be read here explains a broken upload better than the
	// upload does; a pipe that was closed explains nothing.
	if packErr := <-packed; packErr != nil && !errors.Is(packErr, io.ErrClosedPipe) {
		err = packErr
	}
	return left, err
}

// target finds where in the guest the archive is extracted, and what the
// copy is called there.
func (c *copying) target(ctx context.Context, base string, sourceIsDir bool) (dir, name string, err error) {
	at, fi, err := c.follow(ctx, c.to.path)
	switch {
	case err == nil && fs.FileMode(fi.Mode).IsDir():
		return at, base, nil
	case err == nil && base == ".":
		return "", "", api.Errorf(api.CodeInvalid, "%s is no directory", c.to)
	case err == nil || api.IsCode(err, api.CodeNotFound):
		if strings.HasSuffix(c.to.path, "/") && !sourceIsDir {
			return "", "", api.Errorf(api.CodeNotFound, "%s: no such directory", c.to)
		}
		p := path.Clean(c.to.path)
		return path.Dir(p), path.Base(p), nil
	}
	return "", "", err
}

// follow finds and describes what a path of the target guest leads to.
func (c *copying) follow(ctx context.Context, p string) (string, *api.FileInfo, error) {
	p = path.Clean(p)
	for range 10 {
		fi, err := c.app.daemon.Stat(ctx, c.to.guest, p)
		if err != nil || fs.FileMode(fi.Mode)&fs.ModeSymlink == 0 {
			return p, fi, err
		}
		if !path.IsAbs(fi.Target) {
			fi.Target = path.Join(path.Dir(p), fi.Target)
		}
		p = path.Clean(fi.Target)
	}
	return "", nil, api.Errorf(api.CodeInvalid, "%s: too many symbolic links", c.to)
}

// out copies from a guest to here.
func (c *copying) out(r io.Reader) ([]string, error) {
	base := c.from.base()
	to := transfer.Target{Dir: c.to.path, Name: base, Owner: c.owner}
	fi, err := os.Stat(c.to.path)
	switch {
	case err == nil && fi.IsDir():
	case err == nil && base == ".":
		return nil, api.Errorf(api.CodeInvalid, "%s is no directory", c.to.path)
	case err == nil, errors.Is(err, fs.ErrNotExist):
		clean := filepath.Clean(c.to.path)
		to.Dir, to.Name = filepath.Dir(clean), filepath.Base(clean)
	default:
		return nil, err
	}
	return transfer.Unpack(r, base, to)
}

// completeCopy offers instances as NAME: and leaves files to the shell.
func (a *app) completeCopy(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) >= 2 || strings.ContainsAny(prefix, ":/") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names, _ := a.completeNames(instanceNames(api.PhaseRunning), nil, prefix)
	for i, n := range names {
		names[i] = n + ":"
	}
	return names, cobra.ShellCompDirectiveNoSpace
}
