package kernel

import (
	"bytes"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/cleave-project/cleave/api"
)

func TestKernelsAreKnownByTheirHeaders(t *testing.T) {
	for name, c := range map[string]struct {
		file          []byte
		kind          api.Kind
		arch, release string
	}{
		"bzImage":         {bzImageOf(testRelease), api.KindVM, "amd64", testRelease},
		"nameless":        {bzImageOf(""), api.KindVM, "amd64", ""},
		"a path for name": {bzImageOf("../../etc"), api.KindVM, "amd64", ""},
		"arm64":           {imageOf("ARM\x64", "6.1.0-9-cloud-arm64"), api.KindVM, "arm64", "6.1.0-9-cloud-arm64"},
		"riscv64":         {imageOf("RSC\x05", "6.12.1+deb13-riscv64"), api.KindVM, "riscv64", "6.12.1+deb13-riscv64"},
		"linux.uml":       {umlOf("6.1.176"), api.KindPVM, runtime.GOARCH, "6.1.176"},
	} {
		h, err := identify(bytes.NewReader(c.file), int64(len(c.file)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if h.kind != c.kind || h.arch != c.arch || h.release != c.release || h.packed != nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
}

func TestBannerIsFoundWhereverItStands(t *testing.T) {
	for _, at := range []int{0, 100, 1<<20 - 20, 1<<20 - 5, 1<<20 + 3, 3<<20 - 40} {
		b := make([]byte, 3<<20)
		copy(b[at:], "Linux version 6.1.0 (x)")
		if r, err := banner(bytes.NewReader(b), int64(len(b))); r != "6.1.0" || err != nil {
			t.Errorf("at %d: %q %v", at, r, err)
		}
	}
}

func TestPackedKernelsShowTheirPayload(t *testing.T) {
	plain := imageOf("ARM\x64", "6.1.0")
	for name, b := range map[string][]byte{
		"gzip": gzipOf(plain), "zboot gzip": zbootOf("gzip", gzipOf(plain)), "zboot zstd": zbootOf("zstd22", zstdOf(plain)),
	} {
		h, err := identify(bytes.NewReader(b), int64(len(b)))
		if err != nil || h.packed == nil {
			t.Errorf("%s: %+v %v", name, h, err)
			continue
		}
		got, err := readModule(h.packed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestWhatIsNoKernelIsRefusedByWhatItIs(t *testing.T) {
	cut := bzImageOf("6.1")
	old := bzImageOf("6.1")
	old[0x206], old[0x207] = 0x0a, 0x02
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":          {nil, "not a kernel"},
		"text":           {bytes.Repeat([]byte("hello\n"), 1000), "not a kernel"},
		"cut off":        {cut[:0x1000], "cut off"},
		"32 bits":        {old, "64 bits"},
		"no boot flag":   {append(bytes.Repeat([]byte{0}, 0x202), "HdrS"+strings.Repeat("\x00", 4096)...), "not a kernel"},
		"program":        {elfOf(62, nil), "neither linux.uml nor a vmlinux"},
		"damaged":        {[]byte("\x7fELF" + strings.Repeat("\xff", 100)), "damaged program"},
		"uml of another": {elfOf(2, map[string][]byte{".uml.setup.init": {0}}), "runs on such hosts only"},
		"zboot lzma":     {zbootOf("lzma", []byte("x")), `"lzma"`},
		"zboot cut off":  {zbootOf("gzip", make([]byte, 2000))[:1000], "cut off"},
	} {
		h, err := identify(bytes.NewReader(c.file), int64(len(c.file)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v %v, want %q", name, h, err, c.want)
		}
	}
}

func FuzzIdentify(f *testing.F) {
	small := imageOf("ARM\x64", "6.1.0")[:4096]
	for _, b := range [][]byte{bzImageOf(testRelease), small, umlOf("6.1"), zbootOf("gzip", gzipOf(small)), elfOf(62, map[string][]byte{".notes": {1}})} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := identify(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if h.packed != nil {
			if _, err := io.Copy(io.Discard, h.packed); err != nil {
				t.Errorf("a payload that can't be read was accepted: %v", err)
			}
			return
		}
		if h.kind == "" || h.arch == "" || (h.release != "" && !releaseRE.MatchString(h.release)) {
			t.Errorf("%+v", h)
		}
	})
}

func FuzzModinfo(f *testing.F) {
	f.Add(moduleOf("name=x", "depends=a,b", "softdep=pre: c post: d", "alias=pci:*"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseModinfo(b)
		if err == nil && m == nil {
			t.Error("neither an answer nor an error")
		}
	})
}
