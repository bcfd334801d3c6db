package kernel

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-project/cleave/api"
)

// archived is an entry of a cpio archive.
type archived struct {
	mode, device string
	content      []byte
}

// unpack reads an archive of the format newc, by
// Documentation/driver-api/early-userspace/buffer-format.rst.
func unpack(t *testing.T, b []byte) (map[string]archived, []string) {
	t.Helper()
	files, order := map[string]archived{}, []string{}
	for at := 0; ; {
		h := b[at:]
		if string(h[:6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		field := func(n int) int {
			v, err := strconv.ParseInt(string(h[6+8*n:14+8*n]), 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(v)
		}
		size, name := field(6), string(h[110:110+field(11)-1])
		begin := (at + 110 + field(11) + 3) &^ 3
		if name == "TRAILER!!!" {
			return files, order
		}
		files[name] = archived{fmt.Sprintf("%o", field(1)), fmt.Sprintf("%d:%d", field(9), field(10)), b[begin : begin+size]}
		order = append(order, name)
		at = (begin + size + 3) &^ 3
	}
}

func TestInitramfsHoldsAgentAndModulesInOrder(t *testing.T) {
	s := newStore(t)
	add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	b, err := s.Boot(t.Context(), api.KindVM, "amd64", "")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(b.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	files, order := unpack(t, content)
	if len(content)%512 != 0 {
		t.Errorf("%d bytes are no whole blocks", len(content))
	}
	if got := files["init"]; got.mode != "100755" || !bytes.Equal(got.content, agentOf("amd64")) {
		t.Errorf("init: mode %s, %d bytes", got.mode, len(got.content))
	}
	if got := files["dev/console"]; got.mode != "20600" || got.device != "5:1" {
		t.Errorf("dev/console: %+v", got)
	}
	for _, d := range []string{"dev", "proc", "sys", "run", "mnt", "modules"} {
		if files[d].mode != "40755" {
			t.Errorf("%s: %+v", d, files[d])
		}
	}
	want := "virtio.ko virtio-ring.ko virtio_pci.ko virtio_mmio.ko virtio_blk.ko virtio_net.ko virtio_console.ko crc32c_generic.ko libcrc32c.ko erofs.ko overlay.ko virtio_rng.ko"
	if got := strings.Join(strings.Fields(string(files["modules/order"].content)), " "); got != want {
		t.Errorf("order: %s", got)
	}
	for name := range strings.FieldsSeq(want) {
		// All of them as the kernel takes them: unpacked.
		if !bytes.HasPrefix(files["modules/"+name].content, []byte("\x7fELF")) {
			t.Errorf("%s is not a module", name)
		}
	}
	if len(order) != len(strings.Fields(want))+10 {
		t.Errorf("there is more in it: %v", order)
	}
	if b.Modules == "" || b.Version != testRelease || b.Name != testRelease {
		t.Errorf("%+v", b)
	}
}

func TestInitramfsIsMadeOnceAndAnewForANewAgent(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	boot := func(s *Store) (string, os.FileInfo) {
		t.Helper()
		b, err := s.Boot(t.Context(), api.KindVM, "amd64", testRelease)
		if err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(b.Initrd)
		if err != nil {
			t.Fatal(err)
		}
		return b.Initrd, st
	}
	first, st := boot(s)
	if again, st2 := boot(reopen(t, dir)); again != first || !os.SameFile(st, st2) {
		t.Errorf("%s was made again", first)
	}
	agent := filepath.Join(dir, "agent.amd64")
	write(t, agent, append(agentOf("amd64"), 1))
	if err := os.Chtimes(agent, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	second, _ := boot(s)
	if second == first {
		t.Fatal("it has the old agent")
	}
	// Who was given the first may not have opened it yet. The next daemon's
	// guests have nothing of it.
	if !exists(first) {
		t.Error("what was handed out is gone")
	}
	write(t, agent, append(agentOf("amd64"), 2))
	third, _ := boot(reopen(t, dir))
	for _, old := range []string{first, second} {
		if exists(old) {
			t.Errorf("%s is still there", old)
		}
	}
	if !exists(third) {
		t.Error("the newest is not")
	}
}

func TestSameInputsGiveTheSameBytes(t *testing.T) {
	var made [][]byte
	for range 2 {
		s := newStore(t)
		add(t, s, kernelDeb(testRelease), api.KernelAdd{})
		b, err := s.Boot(t.Context(), api.KindVM, "amd64", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{b.Initrd, b.Modules} {
			content, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			made = append(made, append([]byte(filepath.Base(p)), content...))
		}
	}
	for i := range 2 {
		if !bytes.Equal(made[i], made[i+2]) {
			t.Error(cmp.Diff(len(made[i]), len(made[i+2])), "they differ")
		}
	}
}

func TestAgentMustFitTheGuest(t *testing.T) {
	dir := t.TempDir()
	s := reopen(t, dir)
	add(t, s, imageOf("ARM\x64", "6.1.0"), api.KernelAdd{})
	write(t, filepath.Join(dir, "agent.arm64"), agentOf("amd64"))
	if _, err := s.Boot(t.Context(), api.KindVM, "arm64", ""); err == nil || !strings.Contains(err.Error(), "not for arm64") {
		t.Errorf("another architecture's: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "agent.arm64")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Boot(t.Context(), api.KindVM, "arm64", ""); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("none: %v", err)
	}
}

func TestDamagedModulesAreNamed(t *testing.T) {
	s := newStore(t)
	k := add(t, s, kernelDeb(testRelease), api.KernelAdd{})
	file := filepath.Join(s.Dir, k.Name, fileModules)
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, st.Size()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Boot(t.Context(), api.KindVM, "amd64", ""); !api.IsCode(err, api.CodeCorrupt) || !strings.Contains(err.Error(), k.Name) {
		t.Error(err)
	}
}
