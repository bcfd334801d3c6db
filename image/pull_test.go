package image

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/cleave-project/cleave/api"
	"github.com/cleave-project/cleave/image/imagetest"
)

// capability is cap_net_raw+ep as the kernel keeps it (VFS_CAP_REVISION_2).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// everything is an image that uses all that layers have.
func everything(t testing.TB) []layer {
	long := strings.Repeat("long-name-", 12)
	first := []file{
		{Name: "./"},
		{Name: "./etc/"},
		{Name: "./usr/", Mode: 0o711},
		{Name: "./usr/lib/"},
		{Name: "./usr/bin/"},
		{Name: "./lib", Type: tar.TypeSymlink, Link: "usr/lib"},
		{Name: "./bin", Type: tar.TypeSymlink, Link: "/usr/bin"},
		{Name: "./etc/passwd", Body: "root:x:0:0::/root:/bin/sh\n"},
		{Name: "./etc/gone", Body: "goes"},
		{Name: "./etc/conf.d/"},
		{Name: "./etc/conf.d/a", Body: "a"},
		{Name: "./etc/conf.d/sub/b", Body: "b"},
		{Name: "./usr/bin/ping", Mode: 0o755, Body: noise(5000, 1), Xattrs: map[string]string{"security.capability": capability, "user.note": "x"}},
		{Name: "./usr/bin/su", Mode: 0o4755, Body: noise(70_000, 2)},
		{Name: "./usr/bin/wall", Mode: 0o2755, GID: 5, Body: "wall"},
		{Name: "./tmp/", Mode: 0o1777},
		{Name: "./usr/lib/libc.so.6", Type: tar.TypeSymlink, Link: "libc-2.36.so"},
		{Name: "./usr/lib/libc-2.36.so", Body: noise(300_000, 3)},
		{Name: "./home/", UID: 1000, GID: 1000, Time: time.Unix(1, 1)},
		{Name: "./home/" + long + "/" + long, UID: 1000, GID: 1000, Body: "deep"},
		{Name: "./run/fifo", Type: tar.TypeFifo, Mode: 0o600},
		{Name: "./empty"},
		{Name: "./old-dir/x", Body: "x"},
		{Name: "./old-file", Body: "f"},
		{Name: "./links/a", Body: "linked"},
		{Name: "./links/b", Type: tar.TypeLink, Link: "./links/a"},
		{Name: "./links/c", Type: tar.TypeLink, Link: "./links/a"},
		{Name: "./kept/low", Body: "low"},
		{Name: "./usr/share/gone/x", Body: "x"},
	}
	for i := range 500 {
		first = append(first, file{Name: fmt.Sprintf("./usr/share/many/file-%04d", i), Body: strings.Repeat("z", i*17)})
	}
	second := []file{
		{Name: "etc/"},
		{Name: "etc/.wh.gone"},
		{Name: "etc/conf.d/"},
		{Name: "etc/conf.d/.wh..wh..opq"},
		{Name: "etc/conf.d/c", Body: "c"},
		{Name: "lib/libnew.so", Body: "through a link"},
		{Name: "links/"},
		{Name: "links/.wh.b"},
		{Name: "links/d", Type: tar.TypeLink, Link: "links/a"},
		{Name: "old-dir", Body: "now a file"},
		{Name: "old-file/"},
		{Name: "old-file/now", Body: "a directory"},
		{Name: "usr/bin/su", Mode: 0o755, Body: "no longer"},
		{Name: "usr/share/"},
		{Name: "usr/share/.wh.gone"},
		{Name: "usr/share/many/.wh.file-0007"},
	}
	third := []file{
		{Name: "usr/share/"},
		{Name: "usr/share/gone/"},
		{Name: "usr/share/gone/again", Body: "again"},
		{Name: "kept/"},
		{Name: "kept/high", Body: "high"},
		{Name: "home/", UID: 1001, GID: 1001, Mode: 0o750, Xattrs: map[string]string{"user.dir": "1"}},
	}
	empty := gzipped(t, imagetest.Tar(t))
	return []layer{gzipped(t, imagetest.Tar(t, first...)), empty, gzipped(t, imagetest.Tar(t, second...)), empty, gzipped(t, imagetest.Tar(t, third...))}
}

func TestPullEqualsWhatUmociUnpacks(t *testing.T) {
	for _, tool := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs something to compare with: %v", err)
		}
	}
	r := newRegistry(t)
	p := r.push("x/everything:1", everything(t))
	s := openStore(t)
	img := pull(t, s, p.ref)

	dir := t.TempDir()
	for _, args := range [][]string{
		{"skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "docker://" + p.ref, "oci:" + dir + "/oci:1"},
		{"umoci", "unpack", "--image", dir + "/oci:1", dir + "/bundle"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	// Tools differ in the times of directories that layers only imply, or
	// whose content they changed.
	o := imagetest.Options{NoTimes: true}
	want := imagetest.List(t, dir+"/bundle/rootfs", o)
	got := imagetest.List(t, imagetest.Mount(t, s.EROFS(img.Digest)), o)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("umoci (-) and we (+) differ:\n%s", d)
	}
	if len(got) < 500 {
		t.Errorf("only %d files", len(got))
	}
}

func TestPullTakesEveryCompression(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	body := imagetest.Tar(t, file{Name: "a", Body: noise(100_000, 7)})
	var trees [][]string
	for tag, l := range map[string]layer{
		"gz":  gzipped(t, body),
		"zst": {body, pack(t, "zst", body), types.OCILayerZStd},
		"tar": {body, body, types.OCIUncompressedLayer},
		"old": {body, pack(t, "gz", body), types.DockerLayer},
	} {
		img := pull(t, s, r.push("c:"+tag, []layer{l}).ref)
		trees = append(trees, tree(t, s, img.Digest))
	}
	for _, other := range trees[1:] {
		if d := cmp.Diff(trees[0], other); d != "" {
			t.Error(d)
		}
	}
	if roots, _ := os.ReadDir(s.dir(dirRoots)); len(roots) != 1 {
		t.Errorf("%d roots for one tree", len(roots))
	}
}

func TestPullReportsProgress(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("p:1", []layer{gzipped(t, imagetest.Tar(t, file{Name: "a", Body: noise(2<<20, 1)}))})
	var mu sync.Mutex
	var steps []string
	last, total := int64(0), int64(0)
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: p.ref}, func(step string, done, all int64) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
		if step == "downloading" {
			last, total = max(last, done), all
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"resolving", "downloading", "merging"}, steps); d != "" {
		t.Error(d)
	}
	if last != p.layers[0].Size || total != last {
		t.Errorf("%d of %d bytes; the layer has %d", last, total, p.layers[0].Size)
	}
}

func TestPullTakesOverTheConfiguration(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("cfg:1", smallImage(t, "x"), func(c *v1.ConfigFile, _ *v1.Manifest) {
		c.Config = v1.Config{
			Entrypoint: []string{"/lib/systemd/systemd"}, Cmd: []string{"--x"}, Env: []string{"A=1"}, User: "app:app", WorkingDir: "/srv",
			StopSignal: "SIGRTMIN+3", Volumes: map[string]struct{}{"/data": {}}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
			Labels: map[string]string{"l": "v"},
			Healthcheck: &v1.HealthConfig{
				Test: []string{"CMD-SHELL", "curl -f localhost"}, Interval: 1500 * time.Millisecond,
				Timeout: 3 * time.Second, StartPeriod: time.Minute, Retries: 5,
			},
		}
	})
	img := pull(t, s, p.ref)
	want := api.Image{
		Digest: p.digest, Names: []string{p.ref}, Size: img.Size, Created: img.Created, Platform: "linux/" + runtime.GOARCH,
		Source: p.ref, System: true, Type: "root",
		Config: api.ImageConfig{
			Entrypoint: []string{"/lib/systemd/systemd"}, Cmd: []string{"--x"}, Env: []string{"A=1"}, User: "app:app", WorkDir: "/srv",
			StopSignal: "SIGRTMIN+3", Volumes: []string{"/data"}, ExposedPorts: []string{"53/udp", "80/tcp"}, Labels: map[string]string{"l": "v"},
			Health: &api.HealthCheck{Command: []string{"/bin/sh", "-c", "curl -f localhost"}, IntervalSeconds: 2, TimeoutSeconds: 3, StartSeconds: 60, Retries: 5},
		},
	}
	if d := cmp.Diff(want, *img); d != "" {
		t.Error(d)
	}
}

func TestPullFindsSystemImages(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	root := []layer{gzipped(t, imagetest.Tar(t,
		file{Name: "sbin/init", Type: tar.TypeSymlink, Link: "../lib/systemd/systemd"}, file{Name: "lib/systemd/systemd", Mode: 0o755},
		file{Name: "start", Type: tar.TypeSymlink, Link: "/sbin/init"}, file{Name: "bin/app"}))}
	for n, c := range []struct {
		args []string
		want bool
	}{
		{[]string{"/sbin/init"}, true},
		{[]string{"/init"}, true},
		{[]string{"systemd"}, true},
		{[]string{"/start"}, true},
		{[]string{"/usr/bin/dinit"}, true},
		{[]string{"/bin/app"}, false},
		{[]string{"sh", "-c", "/sbin/init"}, false},
		{nil, false},
	} {
		p := r.push(fmt.Sprintf("sys:%d", n), root, func(cf *v1.ConfigFile, _ *v1.Manifest) { cf.Config.Cmd = c.args })
		if img := pull(t, s, p.ref); img.System != c.want {
			t.Errorf("%q: system is %v", c.args, img.System)
		}
	}
}

func TestPullChoosesThePlatform(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	var entries []v1.Descriptor
	for n, p := range []string{"linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "windows/amd64"} {
		parts := strings.Split(p+"/", "/")
		entries = append(entries, r.push(fmt.Sprintf("multi:p%d", n), smallImage(t, p), func(c *v1.ConfigFile, _ *v1.Manifest) {
			c.OS, c.Architecture, c.Variant = parts[0], parts[1], parts[2]
		}).desc)
	}
	attestation := entries[0]
	attestation.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	ref := r.index("multi:all", append(entries, attestation)...)
	for platform, want := range map[string]int{
		"linux/amd64": 0, "linux/x86_64": 0, "linux/arm64": 1, "linux/arm64/v8": 1, "linux/arm/v6": 2, "linux/arm/v7": 3, "linux/arm": 3,
	} {
		img, err := s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: platform}, nil)
		if err != nil || img.Digest != entries[want].Digest.String() {
			t.Errorf("%s: %v, %v", platform, img, err)
		}
	}
	_, err := s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: "linux/riscv64"}, nil)
	wantError(t, err, api.CodeNotFound, "linux/riscv64", "linux/amd64", "linux/arm/v7", "windows/amd64")
	if strings.Contains(err.Error(), "unknown") {
		t.Errorf("%q lists attestations", err)
	}
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: r.host + "/multi:p2"}, nil)
	wantError(t, err, api.CodeNotFound, "linux/arm/v6")
	_, err = s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: "nonsense"}, nil)
	wantError(t, err, api.CodeInvalid, "nonsense")
}

// TestOneNameForSeveralPlatforms pulls all that an index has under one name:
// each stays to be found, and the host's comes first.
func TestOneNameForSeveralPlatforms(t *testing.T) {
	r := newRegistry(t)
	dir := t.TempDir()
	at := func(o *Options) { o.Dir = dir }
	s := openStore(t, at)
	platforms := []string{"linux/" + runtime.GOARCH, "linux/riscv64", "linux/arm/v7"}
	var entries []v1.Descriptor
	for n, p := range platforms {
		parts := strings.Split(p+"/", "/")
		entries = append(entries, r.push(fmt.Sprintf("many:p%d", n), smallImage(t, p), func(c *v1.ConfigFile, _ *v1.Manifest) {
			c.OS, c.Architecture, c.Variant = parts[0], parts[1], parts[2]
		}).desc)
	}
	ref := r.index("many:all", entries...)
	for _, n := range []int{1, 0, 2} {
		if _, err := s.Find(t.Context(), ref, platforms[n]); !api.IsCode(err, api.CodeNotFound) {
			t.Errorf("%s before it was pulled: %v", platforms[n], err)
		}
		if _, err := s.Pull(t.Context(), api.ImagePull{Reference: ref, Platform: platforms[n]}, nil); err != nil {
			t.Fatal(err)
		}
	}
	found := func(s *Store, want ...int) {
		t.Helper()
		got := map[string]string{}
		for _, p := range append(platforms, "") {
			if img, err := s.Find(t.Context(), ref, p); err == nil {
				got[p] = img.Digest
			}
		}
		if img, err := s.Get(t.Context(), ref); err == nil {
			got["any"] = img.Digest
		}
		all := map[string]string{}
		for _, n := range want {
			all[platforms[n]] = entries[n].Digest.String()
		}
		all["any"] = entries[want[0]].Digest.String()
		if want[0] == 0 {
			all[""] = all["any"]
		}
		if d := cmp.Diff(all, got); d != "" {
			t.Error(d)
		}
	}
	found(s, 0, 1, 2)
	if img, err := s.Find(t.Context(), entries[1].Digest.String(), platforms[0]); err != nil || img.Platform != platforms[1] {
		t.Errorf("by its digest: %+v, %v", img, err)
	}
	list, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, fmt.Sprint(i.Names, i.Platform))
	}
	want := []string{fmt.Sprint([]string{ref}, "linux/"+runtime.GOARCH), fmt.Sprint([]string{ref}, "linux/arm/v7"), fmt.Sprint([]string{ref}, "linux/riscv64")}
	if slices.Sort(want); !slices.Equal(names, want) {
		t.Errorf("listed: %v", names)
	}
	s.Close()
	s = openStore(t, at)
	found(s, 0, 1, 2)
	if err := s.Delete(t.Context(), ref, nil); err != nil {
		t.Fatal(err)
	}
	found(s, 2, 1) // the first by name
	if err := s.Untag(t.Context(), entries[2].Digest.String()); err != nil {
		t.Fatal(err)
	}
	found(s, 1)
}

func TestPullByDigest(t *testing.T) {
	r := newRegistry(t)
	s := openStore(t)
	p := r.push("d:1", smallImage(t, "x"))
	byDigest := r.host + "/d@" + p.digest
	img := pull(t, s, byDigest)
	if img.Digest != p.digest || !slices.Contains(img.Names, byDigest) {
		t.Errorf("%+v", img)
	}
	for _, ref := range []string{byDigest, p.digest, p.digest[:20], p.digest[7:13], r.host + "/d:1@" + p.digest} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.Digest != p.digest {
			t.Errorf("%s: %v, %v", ref, got, err)
		}
	}
	_, err := s.Get(t.Context(), r.host+"/d:1")
	wantError(t, err, api.CodeNotFound, "cleave image pull "+r.host+"/d:1")
}
