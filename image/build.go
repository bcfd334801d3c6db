package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/manifest"
)

// distributions that mmdebstrap can make, if the host has their keys.
var distributions = []string{"debian", "ubuntu", "devuan", "kali"}

// systemPackages turn a minimal tree into a system: an init with its bus and
// logins, what loads modules where the guest has a kernel of its own, and what
// one expects to find on a machine.
var systemPackages = []string{"systemd-sysv", "dbus", "libpam-systemd", "kmod", "iproute2", "iputils-ping", "procps", "less"}

var (
	releaseRE = regexp.MustCompile(`^[a-z][a-z0-9.-]{0,63}$`)
	packageRE = regexp.MustCompile(`^[a-z0-9][a-z0-9+.:~=-]{0,127}$`)
	mirrorRE  = regexp.MustCompile(`^(https?|file)://[^\s\x00-\x1f"'\\]+$`)
)

// scrub removes what mmdebstrap copies from the host and a guest gets from
// its engine.
const scrub = `rm -f "$1/etc/hostname" "$1/etc/resolv.conf" && : > "$1/etc/hostname" && : > "$1/etc/resolv.conf"`

// Build makes an image with mmdebstrap, which runs in mount and PID
// namespaces of its own: whatever becomes of it or of the daemon, no mount
// and no process stays. Its tree comes as a tar stream and is never written
// twice.
func (s *Store) Build(ctx context.Context, req api.ImageBuild, p Progress) (*api.Image, error) {
	distribution, release, err := checkBuild(req)
	if err != nil {
		return nil, err
	}
	name := req.Name
	if name == "" {
		name = req.Base
	}
	complete, err := tagName(name)
	if err != nil {
		return nil, err
	}
	tool, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return nil, api.Errorf(api.CodeUnsupported, "build %s: this host has no mmdebstrap: %w", req.Base, err).
			WithHint("apt-get install mmdebstrap")
	}
	platform, err := manifest.ParsePlatform("")
	if err != nil {
		return nil, err
	}
	ctx, end, err := s.began(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	b := &bootstrap{store: s, req: req, distribution: distribution, release: release, tool: tool}
	t, err := b.run(ctx, p)
	if err != nil {
		return nil, within("build "+req.Base, err)
	}
	defer t.w.abort()
	config := v1.Config{Env: []string{defaultPath}, Cmd: []string{"bash"}}
	if req.System {
		config = v1.Config{Env: []string{defaultPath}, Entrypoint: []string{"/sbin/init"}, StopSignal: "SIGRTMIN+3"}
	}
	img, err := s.adopt(ctx, t, rootImage{names: []string{complete}, from: "built from " + req.Base, platform: platform, config: config})
	if err != nil {
		return nil, within("build "+req.Base, err)
	}
	return img, nil
}

// checkBuild keeps anything that could be an option, or a line of apt's
// configuration, away from the command line.
func checkBuild(req api.ImageBuild) (distribution, release string, err error) {
	distribution, release, _ = strings.Cut(req.Base, ":")
	switch {
	case !slices.Contains(distributions, distribution) || !releaseRE.MatchString(release):
		return "", "", api.Errorf(api.CodeInvalid, "%.60q is nothing that can be built", req.Base).
			WithField("base").WithHint("write DISTRIBUTION:RELEASE, like debian:bookworm; known are %s", strings.Join(distributions, ", "))
	case req.Mirror != "" && !mirrorRE.MatchString(req.Mirror):
		return "", "", api.Errorf(api.CodeInvalid, "%.100q is no mirror", req.Mirror).
			WithField("mirror").WithHint("write a URL, like http://deb.debian.org/debian")
	}
	for _, pkg := range req.Include {
		if !packageRE.MatchString(pkg) {
			return "", "", api.Errorf(api.CodeInvalid, "%.100q is no package name", pkg).WithField("include")
		}
	}
	return distribution, release, nil
}

// bootstrap is one run of mmdebstrap.
type bootstrap struct {
	store                 *Store
	req                   api.ImageBuild
	distribution, release string
	tool                  string
}

func (b *bootstrap) run(ctx context.Context, p Progress) (*tarRoot, error) {
	args, err := b.args(ctx)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(b.store.dir(dirTmp), "build-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, b.tool, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// Unshareflags make the host's mounts private first.
		Unshareflags: syscall.CLONE_NEWNS,
		// The first process of a PID namespace takes all others with it.
		Cloneflags: syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	said := &lastLines{p: p}
	cmd.Stderr = said
	// Pdeathsig is sent when the thread ends that has forked (prctl(2)), and
	// threads of this process end with goroutines that lock theirs.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t, err := b.store.readTar(ctx, bufio.NewReader(out), nil)
	if err != nil {
		_, _ = io.Copy(io.Discard, out) // let it say why
	}
	werr := cmd.Wait()
	switch {
	case werr != nil:
		if err == nil {
			t.w.abort()
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, api.Errorf(api.CodeUnavailable, "mmdebstrap: %w: %s", werr, said.tail()).
			WithHint("check the release, the packages and the mirror")
	case err != nil:
		return nil, err
	}
	return t, nil
}

func (b *bootstrap) args(ctx context.Context) ([]string, error) {
	include := b.req.Include
	if b.req.System {
		include = append(slices.Clone(systemPackages), include...)
	}
	args := []string{"--mode=root", "--variant=minbase", "--format=tar", "--customize-hook=" + scrub}
	if len(include) > 0 {
		args = append(args, "--include="+strings.Join(include, ","))
	}
	args = append(args, b.release, "-")
	if b.req.Mirror != "" {
		return append(args, b.req.Mirror), nil
	}
	sources, err := b.hostSources(ctx)
	if err != nil {
		return nil, err
	}
	return append(args, sources...), nil
}

// hostSources are the host's own package sources for this very release,
// which may be a mirror nearby or the only one in reach. Without any, the
// tool's default is used, which knows the archives of its distributions.
func (b *bootstrap) hostSources(ctx context.Context) ([]string, error) {
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return nil, nil
	}
	cmd := exec.CommandContext(ctx, apt, "indextargets",
		"--format", "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)", "Created-By: Packages")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the host's package sources: %w", err)
	}
	components := map[string][]string{}
	var order []string
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 4 || !strings.EqualFold(f[0], b.distribution) || !mirrorRE.MatchString(f[3]) {
			continue
		}
		if f[1] != b.release && f[1] != b.release+"-updates" && f[1] != b.release+"-security" {
			continue
		}
		source := f[3] + " " + f[1]
		if components[source] == nil {
			order = append(order, source)
		}
		if !slices.Contains(components[source], f[2]) {
			components[source] = append(components[source], f[2])
		}
	}
	sources := make([]string, len(order))
	for n, source := range order {
		sources[n] = "deb " + source + " " + strings.Join(components[source], " ")
	}
	return sources, nil
}

// lastLines passes a program's messages on as steps and keeps the last ones.
type lastLines struct {
	p     Progress
	lines []string
	part  []byte
}

const keptLines = 8

func (l *lastLines) Write(b []byte) (int, error) {
	for _, c := range b {
		if c != '\n' && c != '\r' {
			if len(l.part) < 1024 {
				l.part = append(l.part, c)
			}
			continue
		}
		l.line(strings.TrimSpace(string(l.part)))
		l.part = l.part[:0]
	}
	return len(b), nil
}

func (l *lastLines) line(s string) {
	if s == "" {
		return
	}
	l.lines = append(l.lines, s)
	if len(l.lines) > keptLines {
		l.lines = l.lines[1:]
	}
	if step, ok := strings.CutPrefix(s, "I: "); ok {
		l.p.report(step, 0, 0)
	}
}

// tail is the end of what was said, errors first if there are any.
func (l *lastLines) tail() string {
	var errs []string
	for _, s := range l.lines {
		if strings.HasPrefix(s, "E: ") || strings.HasPrefix(s, "Err:") {
			errs = append(errs, s)
		}
	}
	if len(errs) == 0 {
		errs = l.lines
	}
	if len(errs) == 0 {
		return "it said nothing"
	}
	return strings.Join(errs, " / ")
}
