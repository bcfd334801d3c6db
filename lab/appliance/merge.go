package appliance

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cleave-project/cleave/image/erofs"
	"github.com/cleave-project/cleave/image/rootfs"
)

// merge puts the root together out of archives.
type merge struct {
	image  *erofs.Writer
	budget *rootfs.Budget
	tree   *rootfs.Tree
}

// merged are the directories that are links into /usr; packages name them as
// directories.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// unwanted are files of packages that nobody reads on a host.
var unwanted = []string{
	"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/", "usr/share/bug/",
	"usr/share/bash-completion/", "usr/share/zoneinfo/", "usr/lib/x86_64-linux-gnu/gconv/", "usr/share/perl5/",
	"usr/share/debconf/", "usr/share/pixmaps/", "usr/lib/systemd/", "lib/systemd/", "usr/lib/udev/", "lib/udev/",
}

// add lays an archive over the root; keep, if not nil, says which of its
// files.
func (m *merge) add(ctx context.Context, archive io.Reader, keep func(name string) bool) error {
	if keep != nil {
		all := tar.NewReader(archive)
		r, w := io.Pipe()
		defer r.Close()
		go func() { w.CloseWithError(filter(all, w, keep)) }()
		archive = r
	}
	l, err := rootfs.Read(ctx, archive, rootfs.Options{Image: m.image, Budget: m.budget, Plain: true})
	if err != nil {
		return err
	}
	return m.tree.Apply(l)
}

// filter copies an archive, without times.
func filter(from *tar.Reader, to io.Writer, keep func(name string) bool) error {
	w := tar.NewWriter(to)
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return err
		}
		if !keep(path.Clean(h.Name)) {
			continue
		}
		h.ModTime, h.AccessTime, h.ChangeTime, h.Format, h.PAXRecords = time.Unix(0, 0), time.Time{}, time.Time{}, tar.FormatUnknown, nil
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(w, from); err != nil {
			return err
		}
	}
}

// addPackage lays a package's files over the root.
func (m *merge) addPackage(ctx context.Context, deb string) error {
	c := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	err = m.add(ctx, out, func(name string) bool {
		return !slices.Contains(merged, name) &&
			!slices.ContainsFunc(unwanted, func(u string) bool { return strings.HasPrefix(name+"/", u) })
	})
	_, _ = io.Copy(io.Discard, out)
	if waitErr := c.Wait(); waitErr != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", waitErr, bytes.TrimSpace(errs.Bytes()))
	}
	return err
}

// archive is one that is made in memory.
type archive struct {
	bytes.Buffer
	w   *tar.Writer
	err error
}

func newArchive() *archive {
	a := &archive{}
	a.w = tar.NewWriter(&a.Buffer)
	return a
}

func (a *archive) entry(h tar.Header, content []byte) {
	h.ModTime, h.Format, h.Size = time.Unix(0, 0), tar.FormatPAX, int64(len(content))
	if a.err == nil {
		a.err = a.w.WriteHeader(&h)
	}
	if a.err == nil {
		_, a.err = a.w.Write(content)
	}
}

func (a *archive) dir(name string, mode int64) {
	a.entry(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode}, nil)
}

func (a *archive) file(name string, mode int64, content []byte) {
	a.entry(tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}, content)
}

func (a *archive) link(name, target string) {
	a.entry(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: target}, nil)
}

// skeleton has the directories, and the links of those that moved into /usr
// (file-hierarchy(7)).
func skeleton() io.Reader {
	a := newArchive()
	for _, d := range []string{
		"boot", "dev", "etc", "etc/cleave", "home", "lab", "media", "mnt", "opt", "proc", "run", "srv", "sys", "var",
		"usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib/modules", "usr/lib64", "usr/libexec", "usr/libexec/cleave", "usr/share",
	} {
		a.dir(d, 0o755)
	}
	a.dir("root", 0o700)
	a.dir("tmp", 0o1777)
	for _, name := range merged {
		a.link(name, "usr/"+name)
	}
	a.link("var/run", "/run")
	// A writer in memory has no error but those of wrong headers, which the
	// reader then finds.
	a.w.Close()
	return a
}

// etc are files that packages would make by their scripts.
var etc = map[string]string{
	"passwd":   "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
	"group":    "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:104:\nnogroup:x:65534:\n",
	"shadow":   "root:*:::::::\nnobody:*:::::::\n",
	"hosts":    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
	"hostname": "cleave\n", "resolv.conf": "", "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"os-release": "NAME=\"Cleave appliance\"\nID=cleave\nID_LIKE=debian\nPRETTY_NAME=\"Cleave appliance\"\n",
	"profile":    "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w# '\n",
}

// system has what isn't of packages: our programs and files, and busybox for
// all programs that there are no others of; there tells which names are taken.
func system(ctx context.Context, ours map[string][]byte, busybox string, there func(name string) bool) (io.Reader, error) {
	a := newArchive()
	for _, name := range slices.Sorted(maps.Keys(ours)) {
		a.file(name, 0o755, ours[name])
	}
	for _, name := range slices.Sorted(maps.Keys(etc)) {
		mode := int64(0o644)
		if name == "shadow" {
			mode = 0o600
		}
		a.file("etc/"+name, mode, []byte(etc[name]))
	}
	a.link("etc/mtab", "/proc/self/mounts")
	for _, f := range []struct{ from, to string }{
		{"inittab", "etc/inittab"},
		{"start", "etc/cleave/start"},
		{"agent", "etc/cleave/agent"},
		{"stop", "etc/cleave/stop"},
		{"daemon", "etc/cleave/daemon"},
	} {
		b, err := own.ReadFile("root/" + f.from)
		if err != nil {
			return nil, err
		}
		a.file(f.to, 0o755, b)
	}
	applets, err := applets(ctx, busybox)
	if err != nil {
		return nil, err
	}
	for _, name := range applets {
		if !there(name) && ours[name] == nil {
			a.link(name, "/"+busyboxPath)
		}
	}
	if a.err == nil {
		a.err = a.w.Close()
	}
	return a, a.err
}
