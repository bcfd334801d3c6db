package image

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/manifest"
)

// baseInit is what the base image runs: a shell where there is a terminal,
// else something that stays until it is stopped, so that a base launched
// without a command is there to be worked in.
const baseInit = `#!/bin/sh
[ -t 0 ] && exec sh -l
exec sleep infinity
`

// baseDirs and baseFiles are the base image beside busybox. The engine
// writes a guest's own hosts, hostname and resolv.conf over these.
var (
	baseDirs = []string{
		"bin", "dev", "etc", "home", "lib", "mnt", "opt", "proc", "root", "run", "sbin", "srv", "sys", "tmp",
		"usr", "usr/bin", "usr/sbin", "usr/local", "usr/local/bin", "usr/local/sbin",
		"var", "var/cache", "var/empty", "var/lib", "var/log", "var/spool", "var/tmp", "var/www",
	}
	baseModes = map[string]int64{"root": 0o700, "tmp": 0o1777, "var/tmp": 0o1777}
	baseFiles = []struct {
		name, content string
		mode          int64
	}{
		{"bin/base-init", baseInit, 0o755},
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\n" +
			"daemon:x:1:1:daemon:/usr/sbin:/bin/false\n" +
			"www-data:x:33:33:www-data:/var/www:/bin/false\n" +
			"nobody:x:65534:65534:nobody:/var/empty:/bin/false\n", 0o644},
		{"etc/group", "root:x:0:\ndaemon:x:1:\ntty:x:5:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n", 0o644},
		{"etc/shadow", "root:*:::::::\ndaemon:*:::::::\nwww-data:*:::::::\nnobody:*:::::::\n", 0o600},
		{"etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n", 0o644},
		{"etc/hostname", "base\n", 0o644},
		{"etc/resolv.conf", "", 0o644},
		{"etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", 0o644},
		{"etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" +
			"export PS1='\\u@\\h:\\w\\$ '\n", 0o644},
		{"etc/shells", "/bin/sh\n", 0o644},
		{"etc/os-release", "NAME=\"Cleave base\"\nID=cleave-base\nPRETTY_NAME=\"Cleave base\"\nVERSION_ID=1\n", 0o644},
		{"var/www/index.html", "<!doctype html>\n<title>Cleave</title>\n<p>This is a guest of Cleave.</p>\n", 0o644},
	}
	baseConfig = v1.Config{
		Env:        []string{defaultPath},
		Cmd:        []string{"/bin/base-init"},
		WorkingDir: "/root",
		StopSignal: "SIGTERM",
	}
)

// makeBase builds the base image unless the one of this busybox is there. It
// takes some 10 ms.
func (s *Store) makeBase(ctx context.Context) error {
	if s.opts.Busybox == "" {
		return nil
	}
	archive, err := baseArchive(ctx, s.opts.Busybox)
	if err != nil {
		return err
	}
	platform, err := manifest.ParsePlatform("")
	if err != nil {
		return err
	}
	ri := rootImage{names: []string{baseName}, from: "built in", platform: platform, config: baseConfig}
	img, err := ri.manifest(manifest.Digest(archive), int64(len(archive)))
	if err != nil {
		return err
	}
	if s.images[img.Digest] != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.setNames(img.Digest, baseName)
	}
	t, err := s.readTar(ctx, bytes.NewReader(archive), nil)
	if err != nil {
		return err
	}
	defer t.w.abort()
	_, err = s.adopt(ctx, t, ri)
	return err
}

// baseArchive is the base image as a tar file; the same busybox gives the
// same bytes.
func baseArchive(ctx context.Context, busybox string) ([]byte, error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	if err := checkStatic(busybox, program); err != nil {
		return nil, err
	}
	applets, err := baseApplets(ctx, busybox)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content string) {
		h.ModTime, h.Format, h.Size = time.Unix(0, 0), tar.FormatPAX, int64(len(content))
		if err == nil {
			err = w.WriteHeader(&h)
		}
		if err == nil {
			_, err = w.Write([]byte(content))
		}
	}
	for _, d := range baseDirs {
		mode, ok := baseModes[d]
		if !ok {
			mode = 0o755
		}
		add(tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: mode}, "")
	}
	add(tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, string(program))
	for _, f := range baseFiles {
		add(tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: f.mode}, f.content)
	}
	for _, a := range applets {
		add(tar.Header{Name: a, Typeflag: tar.TypeSymlink, Linkname: "/bin/busybox", Mode: 0o777}, "")
	}
	if err == nil {
		err = w.Close()
	}
	return b.Bytes(), err
}

// checkStatic refuses a busybox that needs a loader and libraries, which the
// image doesn't have.
func checkStatic(name string, program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return api.Errorf(api.CodeUnsupported, "%s is linked dynamically", name)
		}
	}
	return nil
}

// baseApplets asks busybox for its applets' paths.
func baseApplets(ctx context.Context, busybox string) ([]string, error) {
	out, err := exec.CommandContext(ctx, busybox, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list-full: %w", busybox, err)
	}
	var applets []string
	for name := range strings.FieldsSeq(string(out)) {
		dir := path.Dir(name)
		// Others, like linuxrc, are for a host's root.
		if slices.Contains([]string{"bin", "sbin", "usr/bin", "usr/sbin"}, dir) && name != "bin/busybox" {
			applets = append(applets, name)
		}
	}
	if len(applets) == 0 {
		return nil, fmt.Errorf("%s --list-full names no applets", busybox)
	}
	slices.Sort(applets)
	return slices.Compact(applets), nil
}
