package kernel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// apt runs the system's package tools in a directory of our own, as the user
// that they have for downloads. Nothing of the host's configuration is
// changed, and nothing is installed.
type apt struct {
	dir    string              // work directory
	config string              // a configuration of our own; empty for the host's
	as     *syscall.Credential // nil: root
}

// errNoPackage is an answer of apt.
var errNoPackage = errors.New("the package sources have no such package")

// newApt prepares a directory. With an architecture the package lists are
// our own; sources, a file in the format of sources.list(5), replaces the
// host's if it isn't empty.
func newApt(dir, arch, sources string) (*apt, error) {
	a := &apt{dir: dir}
	if arch != "" {
		if err := a.configure(arch, sources); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() != 0 || !reachable(dir) {
		return a, nil
	}
	u, err := user.Lookup("_apt")
	if err != nil {
		return a, nil // apt without a user for downloads
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	a.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return a, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			err = os.Lchown(path, int(uid), int(gid))
		}
		return err
	})
}

// reachable tells whether every user can come to a directory.
func reachable(dir string) bool {
	for dir = filepath.Dir(dir); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil || st.Mode()&0o001 == 0 {
			return false
		}
		if dir == "/" {
			return true
		}
	}
}

// configure writes a configuration with lists of our own (apt.conf(5)).
func (a *apt) configure(arch, sources string) error {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, d), 0o755); err != nil {
			return err
		}
	}
	state := filepath.Join(a.dir, "state")
	conf := fmt.Sprintf("Dir::State %q;\nDir::State::status %q;\nDir::Cache %q;\nAPT::Architecture %q;\nAPT::Architectures { %q; };\n"+
		// Only the lists of packages are of use.
		"Acquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\nAcquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";\n",
		state, filepath.Join(state, "status"), filepath.Join(a.dir, "cache"), arch, arch)
	if sources != "" {
		list := filepath.Join(a.dir, "sources.list")
		if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
			return err
		}
		conf += fmt.Sprintf("Dir::Etc::sourcelist %q;\nDir::Etc::sourceparts \"/dev/null\";\n", list)
	}
	if err := os.WriteFile(filepath.Join(state, "status"), nil, 0o644); err != nil {
		return err
	}
	a.config = filepath.Join(a.dir, "apt.conf")
	return os.WriteFile(a.config, []byte(conf), 0o644)
}

// run runs a tool of apt and returns its output. tell, if not nil, hears the
// share of a download that is done, in percent.
func (a *apt) run(ctx context.Context, tell func(percent float64), name string, args ...string) (string, error) {
	const statusFD = 3 // the first of ExtraFiles
	args = append([]string{"-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "APT::Status-Fd=" + strconv.Itoa(statusFD)}, args...)
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = a.dir
	c.Env = a.env()
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	// A group of its own: cancelling ends the programs that it downloads
	// with, too.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: a.as}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) }
	c.WaitDelay = 5 * time.Second
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	c.ExtraFiles = []*os.File{w}
	err = c.Start()
	w.Close()
	if err != nil {
		return "", err
	}
	hearStatus(r, tell)
	if err := c.Wait(); err != nil {
		return "", a.failed(ctx, err, args, errs.String())
	}
	return out.String(), nil
}

// hearStatus reads lines like "dlstatus:1:45.2:Retrieving ..." to their end
// (README.progress-reporting of apt).
func hearStatus(r *os.File, tell func(float64)) {
	for s := bufio.NewScanner(r); s.Scan(); {
		f := strings.Split(s.Text(), ":")
		if len(f) < 3 || f[0] != "dlstatus" || tell == nil {
			continue
		}
		if p, err := strconv.ParseFloat(f[2], 64); err == nil {
			tell(p)
		}
	}
}

// env has what leads to the network, and nothing that changes the answers.
func (a *apt) env() []string {
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/nonexistent", "DEBIAN_FRONTEND=noninteractive"}
	if a.config != "" {
		env = append(env, "APT_CONFIG="+a.config)
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// failed makes an error of what a tool said.
func (a *apt) failed(ctx context.Context, err error, args []string, said string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if strings.Contains(said, "Unable to locate package") || strings.Contains(said, "No packages found") || strings.Contains(said, "Can't select candidate version") {
		return errNoPackage
	}
	var reasons []string
	for line := range strings.Lines(said) {
		if reason, ok := strings.CutPrefix(strings.TrimSpace(line), "E: "); ok {
			reasons = append(reasons, reason)
		}
	}
	if len(reasons) == 0 {
		return fmt.Errorf("apt %s: %w", args[len(args)-1], err)
	}
	return errors.New("apt: " + reasons[0])
}

// update fetches the lists of packages.
func (a *apt) update(ctx context.Context, tell func(float64)) error {
	_, err := a.run(ctx, tell, "apt-get", "update")
	return err
}

// concrete resolves a package that only depends on the newest kernel's.
func (a *apt) concrete(ctx context.Context, pkg string) (string, error) {
	out, err := a.run(ctx, nil, "apt-cache", "depends", "--important", pkg)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + name, nil
		}
	}
	return pkg, nil
}

// candidate is a package that can be downloaded.
type candidate struct {
	name, version string
	size          int64
}

// find asks what would be downloaded: 'URI' NAME_VERSION_ARCH.deb SIZE HASH.
func (a *apt) find(ctx context.Context, pkg string) (*candidate, error) {
	out, err := a.run(ctx, nil, "apt-get", "download", "--print-uris", pkg)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasPrefix(f[0], "'") {
			continue
		}
		parts := strings.Split(strings.TrimSuffix(f[1], ".deb"), "_")
		size, err := strconv.ParseInt(f[2], 10, 64)
		if len(parts) != 3 || err != nil {
			continue
		}
		// The colon of an epoch is written %3a in names of files.
		return &candidate{parts[0], strings.ReplaceAll(parts[1], "%3a", ":"), size}, nil
	}
	return nil, errNoPackage
}

// download fetches a package, which apt verifies by the signed lists, and
// returns its path.
func (a *apt) download(ctx context.Context, c *candidate, tell func(float64)) (string, error) {
	if _, err := a.run(ctx, tell, "apt-get", "download", c.name+"="+c.version); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(a.dir, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d packages", c.name, len(files))
	}
	return files[0], nil
}

// debianSources is a sources.list of Debian itself, for hosts whose own
// sources don't have what is wanted.
func debianSources(mirror, suite, keyring string) string {
	return fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
}

// mirror is where this host has Debian's packages from.
func (a *apt) mirror(ctx context.Context) string {
	const general = "http://deb.debian.org/debian"
	out, err := a.run(ctx, nil, "apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN)")
	if err != nil {
		return general
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 2 && f[1] == "Debian" && strings.HasSuffix(strings.TrimSuffix(f[0], "/"), "/debian") {
			return f[0]
		}
	}
	return general
}
