package image

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

func names(t testing.TB, s *Store) []string {
	t.Helper()
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, i := range list {
		out = append(out, i.Names...)
	}
	return out
}

func importRoot(t testing.TB, s *Store, name, text string) *api.Image {
	t.Helper()
	img, err := s.Import(t.Context(), bytes.NewReader(imagetest.Tar(t, file{Name: "text", Body: text})), name, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestImagesSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	at := func(o *Options) { o.Dir = dir }
	s := openStore(t, at)
	img := importRoot(t, s, "mine:1", "hello")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, at)
	got, err := s.Get(t.Context(), "mine:1")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(img, got); d != "" {
		t.Error(d)
	}
}

func TestStoreHasOneOwner(t *testing.T) {
	s := openStore(t)
	_, err := Open(s.opts)
	wantError(t, err, api.CodeBusy, s.opts.Dir)
}

func TestOpenSweepsWhatACrashLeft(t *testing.T) {
	dir := t.TempDir()
	at := func(o *Options) { o.Dir = dir }
	s := openStore(t, at)
	kept := importRoot(t, s, "kept", "kept")
	lost := importRoot(t, s, "lost", "lost")
	torn := importRoot(t, s, "torn", "torn")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(dir, "tmp", "root-123"), []byte("half"), 0o600),
		os.Mkdir(filepath.Join(dir, "tmp", "build-1"), 0o700),
		os.WriteFile(filepath.Join(dir, "roots", strings.Repeat("a", 64)+".erofs"), make([]byte, 4096), 0o600),
		os.WriteFile(filepath.Join(dir, "images", strings.Repeat("b", 64)+".json"), []byte(`{"image":`), 0o600),
		os.Remove(s.EROFS(lost.Digest)),
		os.Truncate(s.EROFS(torn.Digest), 5000),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, at)
	if d := cmp.Diff([]string{"docker.io/library/kept:latest"}, names(t, s)); d != "" {
		t.Error(d)
	}
	if got, err := s.Get(t.Context(), "kept"); err != nil || got.Digest != kept.Digest {
		t.Errorf("%v, %v", got, err)
	}
	checkNothingHalf(t, s)
	for _, sub := range []string{dirImages, dirRoots} {
		if files, _ := os.ReadDir(s.dir(sub)); len(files) != 1 {
			t.Errorf("%s: %v", sub, files)
		}
	}
	importRoot(t, s, "lost", "lost")
}

func TestGetByPrefix(t *testing.T) {
	s := openStore(t)
	img := importRoot(t, s, "one", "1")
	hex := strings.TrimPrefix(img.Digest, "sha256:")
	for _, ref := range []string{img.Digest, hex, hex[:6], "sha256:" + hex[:12]} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.Digest != img.Digest {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{hex[:5], "ffffffffffff", "UPPER", ""} {
		if got, err := s.Get(t.Context(), ref); err == nil {
			t.Errorf("%q: %v", ref, got)
		}
	}
	_, err := s.Get(t.Context(), "debian:bookworm")
	wantError(t, err, api.CodeNotFound, "cleave image pull debian:bookworm")

	// Two records that begin alike.
	s.mu.Lock()
	for _, end := range []string{"1", "2"} {
		d := "sha256:" + strings.Repeat("c", 63) + end
		s.images[d] = &record{Image: api.Image{Digest: d}}
	}
	s.mu.Unlock()
	_, err = s.Get(t.Context(), "cccccc")
	wantError(t, err, api.CodeInvalid, "several")
}

func TestNamesComeAndGo(t *testing.T) {
	s := openStore(t)
	a, b := importRoot(t, s, "a", "a"), importRoot(t, s, "b", "b")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(s.Tag(t.Context(), "a", "second:x"))
	do(s.Tag(t.Context(), "b", "b:other"))
	do(s.Tag(t.Context(), b.Digest, "a")) // moves it
	if got, err := s.Get(t.Context(), "a"); err != nil || got.Digest != b.Digest {
		t.Errorf("%v, %v", got, err)
	}
	do(s.Untag(t.Context(), "b:other"))
	wantError(t, s.Untag(t.Context(), "b:other"), api.CodeNotFound)
	wantError(t, s.Tag(t.Context(), "none", "x"), api.CodeNotFound)
	wantError(t, s.Tag(t.Context(), "a", "base"), api.CodeInvalid)
	wantError(t, s.Tag(t.Context(), "a", "x@"+a.Digest), api.CodeInvalid)
	wantError(t, s.Tag(t.Context(), "a", "Bad Name"), api.CodeInvalid)

	want := []string{"docker.io/library/a:latest", "docker.io/library/b:latest", "docker.io/library/second:x"}
	if d := cmp.Diff(want, names(t, s)); d != "" {
		t.Error(d)
	}
}

func TestDeleteTakesNamesThenTheImage(t *testing.T) {
	s := openStore(t)
	img := importRoot(t, s, "a", "a")
	path := s.EROFS(img.Digest)
	if err := s.Tag(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	inUse := map[string]bool{img.Digest: true}
	if err := s.Delete(t.Context(), "a", inUse); err != nil {
		t.Fatal("one of two names of an image in use: ", err)
	}
	wantError(t, s.Delete(t.Context(), "b", inUse), api.CodeInUse)
	wantError(t, s.Delete(t.Context(), img.Digest, inUse), api.CodeInUse)
	if err := s.Delete(t.Context(), "b", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("its file: %v", err)
	}
	if s.EROFS(img.Digest) != "" {
		t.Error("it still has a path")
	}
	wantError(t, s.Delete(t.Context(), "b", nil), api.CodeNotFound)

	again := importRoot(t, s, "a", "a")
	if err := s.Tag(t.Context(), "a", "b"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), again.Digest, nil); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestDeleteKeepsSharedRoots(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	a := pull(t, s, r.push("a:1", smallImage(t, "same"), label("a")).ref)
	b := pull(t, s, r.push("b:1", smallImage(t, "same"), label("b")).ref)
	if a.Digest == b.Digest || s.EROFS(a.Digest) != s.EROFS(b.Digest) {
		t.Fatalf("%s and %s", s.EROFS(a.Digest), s.EROFS(b.Digest))
	}
	if err := s.Delete(t.Context(), a.Digest, nil); err != nil {
		t.Fatal(err)
	}
	if got := tree(t, s, b.Digest); len(got) != 3 {
		t.Errorf("%v", got)
	}
}

func TestCollectTakesWhatNothingNeeds(t *testing.T) {
	s := openStore(t)
	used, unused := importRoot(t, s, "used", "1"), importRoot(t, s, "unused", "2")
	importRoot(t, s, "named", "3")
	for _, n := range []string{"used", "unused"} {
		if err := s.Untag(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir(dirBlobs), strings.Repeat("d", 64)), make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	freed, digests, err := s.Collect(t.Context(), map[string]bool{used.Digest: true})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{unused.Digest}, digests); d != "" {
		t.Error(d)
	}
	if freed < 16<<10 {
		t.Errorf("freed %v", freed)
	}
	if list, _ := s.List(t.Context()); len(list) != 2 {
		t.Errorf("%v", list)
	}
	if freed, digests, err = s.Collect(t.Context(), map[string]bool{used.Digest: true}); freed != 0 || digests != nil || err != nil {
		t.Errorf("again: %v %v %v", freed, digests, err)
	}
}

func TestClosedStoreRefusesWork(t *testing.T) {
	s := openStore(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.Import(t.Context(), bytes.NewReader(nil), "a", "", nil)
	wantError(t, err, api.CodeUnavailable)
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: "a"}, nil)
	wantError(t, err, api.CodeUnavailable)
}

func busybox(t testing.TB) string {
	t.Helper()
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if b, err := os.ReadFile(p); err == nil && checkStatic(p, b) == nil {
			return p
		}
	}
	t.Skip("needs a static busybox (busybox-static)")
	return ""
}

func TestBaseIsBuiltIn(t *testing.T) {
	path := busybox(t)
	s := openStore(t, func(o *Options) { o.Busybox = path })
	img, err := s.Get(t.Context(), "base")
	if err != nil {
		t.Fatal(err)
	}
	if pulled, err := s.Pull(t.Context(), api.ImagePull{Reference: "base"}, nil); err != nil || pulled.Digest != img.Digest {
		t.Errorf("%v, %v", pulled, err)
	}
	if d := cmp.Diff([]string{"base"}, img.Names); d != "" || img.System {
		t.Error(d)
	}
	root := imagetest.Mount(t, s.EROFS(img.Digest))
	for _, name := range []string{
		"bin/busybox", "bin/sh", "sbin/ip", "usr/bin/wget", "etc/passwd", "etc/group", "etc/hosts", "etc/resolv.conf",
		"etc/hostname", "etc/profile", "etc/nsswitch.conf", "etc/os-release", "tmp", "root", "var", "run", "home", "proc", "sys", "dev", "var/www/index.html", "bin/base-init",
	} {
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if st, err := os.Stat(filepath.Join(root, "tmp")); err != nil || st.Mode()&(os.ModeSticky|0o777) != os.ModeSticky|0o777 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	wantError(t, s.Delete(t.Context(), "base", nil), api.CodeInvalid)
	wantError(t, s.Delete(t.Context(), img.Digest, nil), api.CodeInvalid)
}

func TestBaseFollowsBusybox(t *testing.T) {
	program, err := os.ReadFile(busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "busybox")
	open := func() *api.Image {
		t.Helper()
		if err := os.WriteFile(path, program, 0o755); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, func(o *Options) { o.Dir, o.Busybox = dir, path })
		defer s.Close()
		img, err := s.Get(t.Context(), "base")
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	first, second := open(), open()
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("made anew for the same busybox: %s", d)
	}
	program = append(program, "a newer one"...)
	third := open()
	if third.Digest == first.Digest || !slices.Contains(third.Names, "base") {
		t.Errorf("%v", third)
	}
}

func TestWithoutBaseTheReasonIsSaid(t *testing.T) {
	s := openStore(t)
	_, err := s.Get(t.Context(), "base")
	wantError(t, err, api.CodeNotFound, "busybox-static")
	s = openStore(t, func(o *Options) { o.Busybox = "/bin/ls" })
	_, err = s.Get(t.Context(), "base")
	wantError(t, err, api.CodeNotFound, "dynamically")
}
