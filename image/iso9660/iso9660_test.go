package iso9660

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cleave-project/cleave/internal/loop"
)

func build(t *testing.T, label string, files map[string]string) []byte {
	t.Helper()
	var list []File
	for name, text := range files {
		list = append(list, File{name, int64(len(text)), strings.NewReader(text)})
	}
	var b bytes.Buffer
	if err := Write(&b, label, list); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var sample = map[string]string{
	"meta-data": "instance-id: x\n", "user-data": "", "network-config": strings.Repeat("x", 2048), "cleave-agent": strings.Repeat("agent", 100_000), "ümläut.txt": "ü",
}

func TestKernelReadsIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "iso")
	if err := os.WriteFile(path, build(t, "cidata", sample), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev, err := loop.Attach(t.Context(), f)
	if err != nil {
		t.Skipf("needs a loop device: %v", err)
	}
	defer dev.Close()
	for _, options := range []string{"utf8", "nojoliet"} {
		dir := t.TempDir()
		if err := unix.Mount(dev.Path(), dir, "iso9660", unix.MS_RDONLY, options); err != nil {
			t.Skipf("needs a kernel with ISO 9660: %v", err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != len(sample) {
			t.Errorf("%s: %v, %v", options, files, err)
		}
		for name, text := range sample {
			if strings.HasPrefix(name, "ü") && options == "nojoliet" {
				continue
			}
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != text {
				t.Errorf("%s: %s has %d bytes: %v", options, name, len(b), err)
			}
		}
	}
}

func TestOthersReadIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "iso")
	if err := os.WriteFile(path, build(t, "cidata", sample), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		pkg  string
		args []string
	}{
		{"genisoimage", []string{"isoinfo", "-d", "-i", path}},
		{"xorriso", []string{"xorriso", "-indev", path, "-ls"}},
		{"util-linux", []string{"blkid", "-p", path}},
	} {
		t.Run(tt.args[0], func(t *testing.T) {
			if _, err := exec.LookPath(tt.args[0]); err != nil {
				t.Skipf("needs it: %v (install %s)", err, tt.pkg)
			}
			out, err := exec.Command(tt.args[0], tt.args[1:]...).CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte("cidata")) && !bytes.Contains(out, []byte("user-data")) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestOthersReadTheSameContent(t *testing.T) {
	if _, err := exec.LookPath("isoinfo"); err != nil {
		t.Skipf("needs isoinfo: %v (install genisoimage)", err)
	}
	path := filepath.Join(t.TempDir(), "iso")
	if err := os.WriteFile(path, build(t, "cidata", sample), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range sample {
		if strings.HasPrefix(name, "ü") {
			continue // depends on the locale
		}
		for _, args := range [][]string{{"-i", path, "-x", "/" + name}, {"-J", "-i", path, "-x", "/" + name}} {
			out, err := exec.Command("isoinfo", args...).Output()
			if err != nil || string(out) != text {
				t.Errorf("isoinfo %v: %d bytes, %v", args, len(out), err)
			}
		}
	}
}

func TestSameFilesGiveSameBytes(t *testing.T) {
	if !bytes.Equal(build(t, "x", sample), build(t, "x", sample)) {
		t.Error("two media of the same files differ")
	}
}

func TestRefuses(t *testing.T) {
	many := []File{}
	for i := range 60 {
		many = append(many, File{Name: strings.Repeat("n", 40) + string(rune('a'+i%26)) + string(rune('a'+i/26)), Data: strings.NewReader("")})
	}
	for name, files := range map[string][]File{
		"a path":    {{Name: "a/b", Data: strings.NewReader("")}},
		"no name":   {{Data: strings.NewReader("")}},
		"twice":     {{Name: "a", Data: strings.NewReader("")}, {Name: "a", Data: strings.NewReader("")}},
		"too short": {{Name: "a", Size: 5, Data: strings.NewReader("abc")}},
		"too many":  many,
	} {
		if err := Write(io.Discard, "x", files); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
