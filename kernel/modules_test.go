package kernel

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

// setOf reads a directory of modules from texts.
func setOf(t *testing.T, files map[string]string) *moduleSet {
	t.Helper()
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	m, err := readModules(fsys)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rest builds in what kind vm needs, but for names.
func rest(but ...string) string {
	var b strings.Builder
	for _, n := range needed[api.KindVM] {
		if !slices.Contains(but, n) {
			b.WriteString("kernel/" + strings.ReplaceAll(n, "_", "-") + ".ko\n")
		}
	}
	return b.String()
}

func TestModulesComeAfterWhatTheyNeed(t *testing.T) {
	m := setOf(t, map[string]string{
		"modules.builtin": rest("virtio_net", "erofs", "virtio_blk"),
		"modules.dep": "net/virtio_net.ko.xz: net/net_failover.ko.xz net/failover.ko.xz lib/virtio.ko\n" +
			"net/net_failover.ko.xz: net/failover.ko.xz\nnet/failover.ko.xz:\nlib/virtio.ko:\n" +
			"blk/virtio-blk.ko: lib/virtio.ko\nfs/erofs.ko:\nhw/virtio-rng.ko: lib/virtio.ko\nfs/xfs.ko:\n",
	})
	got, err := m.order(api.KindVM)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"lib/virtio.ko", "blk/virtio-blk.ko", "net/failover.ko.xz", "net/net_failover.ko.xz", "net/virtio_net.ko.xz", "fs/erofs.ko", "hw/virtio-rng.ko"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestMissingModulesAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		dep, without, want string
	}{
		"wanted":       {"", "virtio_console", "module virtio_console is neither"},
		"a dependency": {"fs/erofs.ko: lib/crc.ko\n", "erofs", "module crc, which erofs needs, is neither"},
	} {
		m := setOf(t, map[string]string{"modules.dep": c.dep, "modules.builtin": rest(c.without)})
		if _, err := m.order(api.KindVM); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSoftDependenciesAreMetByWhatIsThere(t *testing.T) {
	for name, c := range map[string]struct {
		dep, builtin, alias string
		want                []string
	}{
		"by name":     {"crc32c.ko:\n", "", "", []string{"crc32c.ko", "erofs.ko"}},
		"by alias":    {"crc-fast.ko:\n", "", "alias crc32c crc_fast\n", []string{"crc-fast.ko", "erofs.ko"}},
		"the generic": {"a-crc.ko:\ncrc32c_generic.ko:\n", "", "alias crc32c a_crc\nalias crc32c crc32c_generic\n", []string{"crc32c_generic.ko", "erofs.ko"}},
		"built in":    {"a-crc.ko:\n", "crypto/b_crc.ko\n", "alias crc32c a_crc\nalias crc32c b_crc\n", []string{"erofs.ko"}},
		"by none":     {"", "", "", []string{"erofs.ko"}},
	} {
		m := setOf(t, map[string]string{
			"modules.dep": "erofs.ko:\n" + c.dep, "modules.builtin": rest("erofs") + c.builtin,
			"modules.softdep": "# comment\nsoftdep erofs pre: crc32c post: other\nsoftdep broken\n", "modules.alias": c.alias + "alias pci:v* erofs\nbroken\n",
		})
		got, err := m.order(api.KindVM)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

func TestCircleOfDependenciesEnds(t *testing.T) {
	m := setOf(t, map[string]string{"modules.dep": "erofs.ko: b.ko\nb.ko: erofs.ko\n", "modules.builtin": rest("erofs")})
	if got, err := m.order(api.KindVM); err != nil || len(got) != 2 {
		t.Errorf("%v %v", got, err)
	}
}

// find looks a key up in a binary index, as libkmod does.
func find(b []byte, key string) []string {
	be := binary.BigEndian
	at := be.Uint32(b[8:])
	for {
		flags, p := at&0xf0000000, int(at&0x0fffffff)
		if flags&0x80000000 != 0 {
			end := p + slices.Index(b[p:], 0)
			rest, ok := strings.CutPrefix(key, string(b[p:end]))
			if !ok {
				return nil
			}
			key, p = rest, end+1
		}
		var first, last byte
		children := 0
		if flags&0x20000000 != 0 {
			first, last = b[p], b[p+1]
			children, p = p+2, p+2+4*int(last-first+1)
		}
		if key == "" {
			if flags&0x40000000 == 0 {
				return nil
			}
			var values []string
			n := be.Uint32(b[p:])
			for p += 4; n > 0; n-- {
				end := p + 4 + slices.Index(b[p+4:], 0)
				values, p = append(values, string(b[p+4:end])), end+1
			}
			return values
		}
		if children == 0 || key[0] < first || key[0] > last {
			return nil
		}
		at = be.Uint32(b[children+4*int(key[0]-first):])
		key = key[1:]
		if at == 0 {
			return nil
		}
	}
}

func TestBinaryIndexFindsWhatWasPutIn(t *testing.T) {
	entries := []entry{{"virtio", "a"}, {"virtio_net", "b"}, {"virtio_net", "c"}, {"virtio_net", "b"}, {"v", "d"}, {"pci:v*", "e"}, {"zz", ""}, {"\xff", "bad"}, {strings.Repeat("x", 2000), "long"}}
	b := binaryIndex(entries)
	for key, want := range map[string][]string{
		"virtio": {"a"}, "virtio_net": {"b", "c"}, "v": {"d"}, "pci:v*": {"e"}, "zz": {""}, "vi": nil, "virtio_": nil, "virtio_netx": nil, "a": nil, "": nil,
	} {
		if d := cmp.Diff(want, find(b, key)); d != "" {
			t.Errorf("%q: %s", key, d)
		}
	}
	if b := binaryIndex(nil); find(b, "x") != nil {
		t.Error("an empty index has an entry")
	}
}

// withIndex writes the modules of a fixture with their index to a directory
// below root, as a guest has them.
func withIndex(t *testing.T) (root string, set *tree) {
	t.Helper()
	root = t.TempDir()
	f, err := os.Create(filepath.Join(root, "modules.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	set = newTree(f)
	prefix := "lib/modules/" + testRelease + "/"
	for _, m := range modulesOf(testRelease) {
		if err := set.text(strings.TrimPrefix(m.name, prefix), m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := set.index(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name := range set.files {
		write(t, filepath.Join(root, prefix, name), set.read(name))
	}
	return root, set
}

func TestIndexSaysWhatModulesSay(t *testing.T) {
	_, set := withIndex(t)
	for name, want := range map[string]string{
		"modules.dep":     "kernel/virtio/virtio_net.ko: kernel/virtio/virtio-ring.ko kernel/virtio/virtio.ko\n",
		"modules.alias":   "alias fs-overlay overlay\n",
		"modules.softdep": "softdep libcrc32c pre: crc32c\n",
		"modules.devname": "fuse fuse c10:229\n",
	} {
		if got := string(set.read(name)); !strings.Contains(got, want) {
			t.Errorf("%s lacks %q:\n%s", name, want, got)
		}
	}
	for index, keys := range map[string]map[string]string{
		"modules.dep.bin":           {"virtio_ring": "kernel/virtio/virtio-ring.ko: kernel/virtio/virtio.ko"},
		"modules.alias.bin":         {"fs_overlay": "overlay", "virtio:d00000001v*": "virtio_pci"},
		"modules.builtin.bin":       {"ext4": ""},
		"modules.builtin.alias.bin": {"fs_ext4": "ext4"},
	} {
		for key, want := range keys {
			if got := find(set.read(index), key); len(got) == 0 || !slices.Contains(got, want) {
				t.Errorf("%s: %s is %q", index, key, got)
			}
		}
	}
}

// TestModprobeReadsTheIndex is the judgement of those who will use it.
func TestModprobeReadsTheIndex(t *testing.T) {
	modprobe, err := exec.LookPath("modprobe")
	if err != nil {
		t.Skipf("without modprobe (package kmod) nobody judges: %v", err)
	}
	root, _ := withIndex(t)
	for name, want := range map[string]string{
		"virtio_net":        "virtio.ko virtio-ring.ko virtio_net.ko",
		"fs-overlay":        "overlay.ko.xz",
		"char-major-10-229": "fuse.ko",
		"ext4":              "ext4",
		"fs-ext4":           "ext4",
	} {
		out, err := exec.Command(modprobe, "-d", root, "-S", testRelease, "--show-depends", name).Output()
		if err != nil {
			var exit *exec.ExitError
			_ = errors.As(err, &exit)
			t.Errorf("%s: %v %s", name, err, exit.Stderr)
			continue
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			got = append(got, filepath.Base(strings.TrimSpace(strings.TrimPrefix(strings.TrimPrefix(line, "insmod "), "builtin "))))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s, want %s", name, s, want)
		}
	}
}

func FuzzModules(f *testing.F) {
	f.Add("fs/erofs.ko: lib/crc.ko\nlib/crc.ko:\n", rest("erofs"), "softdep erofs pre: crc32c\n", "alias crc32c crc\n")
	f.Fuzz(func(t *testing.T, dep, builtin, softdep, alias string) {
		fsys := fstest.MapFS{}
		for name, text := range map[string]string{"modules.dep": dep, "modules.builtin": builtin, "modules.softdep": softdep, "modules.alias": alias} {
			fsys[name] = &fstest.MapFile{Data: []byte(text)}
		}
		m, err := readModules(fsys)
		if err != nil {
			t.Fatal(err)
		}
		list, err := m.order(api.KindVM)
		seen := map[string]bool{}
		for _, file := range list {
			if err == nil && seen[file] {
				t.Errorf("%s is loaded twice", file)
			}
			seen[file] = true
		}
	})
}
